/** No index, no rank, no channel. */
export const NONE: u32 = 0xffffffff;
/** Reduce, cross, fanout. */
export const STAGES: u32 = 3;

/** Arrays in the arena: an address and an index. */
// @ts-ignore: decorator
@inline
export function u32At(at: usize, index: u32): u32 {
  return load<u32>(at + ((<usize>index) << 2));
}
// @ts-ignore: decorator
@inline
export function i32At(at: usize, index: u32): i32 {
  return load<i32>(at + ((<usize>index) << 2));
}
// @ts-ignore: decorator
@inline
export function setU32(at: usize, index: u32, value: u32): void {
  store<u32>(at + ((<usize>index) << 2), value);
}
/** Adds to an entry. */
// @ts-ignore: decorator
@inline
export function addU32(at: usize, index: u32, value: u32): void {
  setU32(at, index, u32At(at, index) + value);
}
// @ts-ignore: decorator
@inline
export function i64At(at: usize, index: u32): i64 {
  return load<i64>(at + ((<usize>index) << 3));
}
// @ts-ignore: decorator
@inline
export function setI64(at: usize, index: u32, value: i64): void {
  store<i64>(at + ((<usize>index) << 3), value);
}
/** The greatest common divisor, and the least common multiple, of positive numbers. */
export function commonDivisor(a: i64, b: i64): i64 {
  while (b != 0) {
    const rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}
export function commonMultiple(a: i64, b: i64): i64 {
  return (a / commonDivisor(a, b)) * b;
}
// @ts-ignore: decorator
@inline
export function ceilDiv(a: i64, b: i64): i64 {
  return a == 0 ? 0 : (a - 1) / b + 1;
}

/** Counts end here: no plan has as many of anything, and sums of two do not overflow. */
const MANY: i64 = 1 << 62;
/** The product of two counts, and their sum, as far as `MANY`. */
export function countTimes(a: i64, b: i64): i64 {
  return b != 0 && a > MANY / b ? MANY : a * b;
}
export function countPlus(a: i64, b: i64): i64 {
  return min(a + b, MANY);
}
