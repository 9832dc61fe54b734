/** Ranks and sides, as flags and variables of agents name them. */
import { TensorBusError } from "../../errors.ts";

/** `0..3` and `0,2,5`, or both: `0..3,8`. `TB_SPEC` for anything else. */
export function parseRanks(name: string, text: string): number[] {
  const ranks = text.split(",").flatMap((part) => {
    const match = /^(\d+)(?:\.\.(\d+))?$/.exec(part.trim());
    const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])];
    if (match === null || last < first || last - first > 2 ** 16) {
      throw new TensorBusError("TB_SPEC", `${name} must be ranks such as 0..3 or 0,2,5, not ${text}`, {
        details: { [name]: text },
      });
    }
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
  if (new Set(ranks).size === ranks.length) return ranks;
  throw new TensorBusError("TB_SPEC", `${name} names a rank twice: ${text}`, { details: { [name]: text } });
}

/** The text of ascending ranks that `parseRanks` reads: `0..3,8`. */
export function formatRanks(ranks: readonly number[]): string {
  const runs: [first: number, last: number][] = [];
  for (const rank of ranks) {
    const run = runs.at(-1);
    if (run?.[1] === rank - 1) run[1] = rank;
    else runs.push([rank, rank]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}..${last}`)).join(",");
}

/** The sides of a world, by name: `trainer=0..3`. `TB_SPEC` if one is malformed, or a rank stands on two. */
export function parseSides(texts: readonly string[]): Map<string, number[]> {
  const sides = new Map<string, number[]>();
  for (const text of texts) {
    const [name, ranks, more] = text.split("=");
    if (!name || ranks === undefined || more !== undefined || sides.has(name)) {
      throw new TensorBusError("TB_SPEC", `a side is NAME=RANKS, each name once, not ${text}`, {
        details: { side: text },
      });
    }
    sides.set(name, parseRanks(`side ${name}`, ranks));
  }
  return sides;
}

/** The text that one agent's environment hands on and that `parseSides` reads again. */
export function formatSides(sides: ReadonlyMap<string, readonly number[]>): string {
  return [...sides].map(([name, ranks]) => `${name}=${ranks.join(",")}`).join(";");
}
