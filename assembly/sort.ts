import { alloc, mark, release } from "./arena";
import { i64At, setU32, u32At } from "./words";

/**
 * Sorts `count` u32 indices at `items` by `keys[index]`, ascending and stable: a merge sort from runs of one.
 */
export function sortByKey(items: usize, count: u32, keys: usize): void {
  if (isSorted(items, count, keys)) return;
  const before = mark();
  let from = items;
  let to = alloc((<usize>count) << 2);
  for (let width: u32 = 1; width < count; width <<= 1) {
    for (let low: u32 = 0; low < count; low += width << 1) {
      const middle = min(low + width, count);
      const high = min(low + (width << 1), count);
      merge(from, to, low, middle, high, keys);
    }
    const other = from;
    from = to;
    to = other;
  }
  if (from != items) memory.copy(items, from, (<usize>count) << 2);
  release(before);
}

function isSorted(items: usize, count: u32, keys: usize): bool {
  for (let index: u32 = 1; index < count; index++) {
    if (i64At(keys, u32At(items, index)) < i64At(keys, u32At(items, index - 1))) return false;
  }
  return true;
}

function merge(from: usize, to: usize, low: u32, middle: u32, high: u32, keys: usize): void {
  let left = low;
  let right = middle;
  for (let at = low; at < high; at++) {
    const takeLeft =
      left < middle && (right >= high || i64At(keys, u32At(from, left)) <= i64At(keys, u32At(from, right)));
    setU32(to, at, u32At(from, takeLeft ? left++ : right++));
  }
}
