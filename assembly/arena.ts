/**
 * All memory of one call: a stack that only grows, with marks to fall back to. The host drops the instance,
 * or resets the arena, when the call is over, so that nothing is ever freed piece by piece.
 */
import { fail, TB_PLAN_TOO_LARGE } from "./error";

/** What is too large: in `TB_PLAN_TOO_LARGE` the first value, then how much there would be. */
const OF_MEMORY: i64 = -1;
export const OF_CHANNELS: i64 = -2;
export const OF_CHUNKS: i64 = -3;
export const OF_RUNS: i64 = -4;

/** Addresses have 32 bits. */
const MOST: usize = 0xffff0000;

let top: usize = (__heap_base + 15) & ~15;

export function reset(): void {
  top = (__heap_base + 15) & ~15;
}

/** `bytes` at a multiple of 8; contents are what was there before. */
export function alloc(bytes: usize): usize {
  const at = top;
  if (bytes > MOST - at) fail(TB_PLAN_TOO_LARGE, OF_MEMORY, <i64>at + <i64>bytes);
  ensure(at + bytes);
  top = (at + bytes + 7) & ~7;
  return at;
}

export function allocZero(bytes: usize): usize {
  const at = alloc(bytes);
  memory.fill(at, 0, bytes);
  return at;
}

export function mark(): usize {
  return top;
}

/** Gives back everything that was taken since `mark` answered `to`. */
export function release(to: usize): void {
  top = to;
}

/**
 * Doubles what stands at `at` when `used` bytes fill it; answers where it stands now. It stays in place if it is
 * on top.
 */
export function grow(at: usize, capacity: usize): usize {
  if (at + ((capacity + 7) & ~7) == top) {
    alloc(capacity);
    return at;
  }
  if (capacity >= 0x80000000) fail(TB_PLAN_TOO_LARGE, OF_MEMORY, (<i64>capacity) << 1);
  const moved = alloc(capacity << 1);
  memory.copy(moved, at, capacity);
  return moved;
}

function ensure(end: usize): void {
  const have = (<usize>memory.size()) << 16;
  if (end <= have) return;
  // An eighth more at a time: every call into the engine takes a while.
  const pages = <i32>((end - have + 0xffff) >> 16);
  const ahead = <i32>(have >> 19);
  if (memory.grow(pages + ahead) >= 0) return;
  if (memory.grow(pages) < 0) fail(TB_PLAN_TOO_LARGE, OF_MEMORY, <i64>end);
}
