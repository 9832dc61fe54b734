/** Expressions of a table: short sums of products of a config's keys and numbers, as `num_experts * 2 + 1`. */

type Factor = { readonly divides: boolean } & ({ readonly name: string } | { readonly number: number });

const parsed = new Map<string, readonly (readonly Factor[])[]>();

/** The value of an expression. A quotient that is no integer gives a fraction, which no shape has. */
export function evaluate(expression: string, value: (name: string) => number): number {
  let terms = parsed.get(expression);
  if (terms === undefined) {
    terms = expression.split("+").map(parseTerm);
    parsed.set(expression, terms);
  }
  let sum = 0;
  for (const factors of terms) {
    let product = 1;
    for (const factor of factors) {
      const operand = "name" in factor ? value(factor.name) : factor.number;
      product = factor.divides ? product / operand : product * operand;
    }
    sum += product;
  }
  return sum;
}

function parseTerm(term: string): Factor[] {
  return [...term.matchAll(/([*/])?\s*([A-Za-z_]\w*|\d+)/g)].map(([, operator, operand]) => ({
    divides: operator === "/",
    ...(/^\d/.test(operand!) ? { number: Number(operand) } : { name: operand! }),
  }));
}
