/** Which multiples of a number leave a rest: those that are a rank's where ranks take turns. */
import { commonDivisor } from "./words";

let divisor: i64 = 1;
let inverse: i64 = 0;
/** The solutions of `firstSolution` come again after this. */
export let solutionStep: i64 = 1;

/** Begins with numbers x for which x · `factor` leaves a rest modulo `modulus`. */
export function startSolutions(factor: i64, modulus: i64): void {
  divisor = commonDivisor(factor, modulus);
  solutionStep = modulus / divisor;
  inverse = inverseOf((factor / divisor) % solutionStep, solutionStep);
}

/** The least x of at least 0 for which x · `factor` leaves `rest`; -1 if there is none. */
export function firstSolution(rest: i64): i64 {
  if (rest % divisor != 0) return -1;
  return (((rest / divisor) % solutionStep) * inverse) % solutionStep;
}

/** The inverse of a number modulo one that it is prime to, by Euclid's algorithm. */
function inverseOf(value: i64, modulus: i64): i64 {
  let rest = modulus;
  let other = value;
  let factor: i64 = 0;
  let otherFactor: i64 = 1;
  while (other != 0) {
    const quotient = rest / other;
    const nextRest = rest - quotient * other;
    rest = other;
    other = nextRest;
    const nextFactor = factor - quotient * otherFactor;
    factor = otherFactor;
    otherFactor = nextFactor;
  }
  return modulo(factor, modulus);
}

/** What a number, which may be negative, leaves. */
// @ts-ignore: decorator
@inline
export function modulo(value: i64, modulus: i64): i64 {
  const rest = value % modulus;
  return rest < 0 ? rest + modulus : rest;
}
