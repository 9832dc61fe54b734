import { type DType, unitOf } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";

/**
 * The bytes that a strided view touches, as a set: `start` plus every combination of the loops, each a run. Loops have
 * the largest stride first and more than one step. Numbers are exact: addresses of user space are below 2^53.
 */
export interface StridedBytes {
  readonly start: number;
  readonly loops: readonly StridedLoop[];
  readonly run: number;
}

interface StridedLoop {
  readonly count: number;
  /** Bytes, 0 and more; 0 says the same bytes again. */
  readonly stride: number;
}

/** The bytes of a descriptor of a program (`docs/program-format.md`), relative to `base`. */
export function stridedOfDescriptor(words: BigInt64Array, base: bigint): StridedBytes {
  const loops: StridedLoop[] = [];
  const dims = Number(words[1]);
  for (let dim = 0; dim < dims; dim++) {
    loops.push({ count: Number(words[2 + 2 * dim]), stride: Number(words[3 + 2 * dim]) });
  }
  return strided(Number(base + words[0]!), loops, Number(words[2 + 2 * dims]));
}

/** The bytes of a local tensor; `undefined` if it has no elements. Strides in elements, contiguous unless given. */
export function stridedOfTensor(
  address: bigint,
  shape: readonly number[],
  itemBytes: number,
  strides: readonly number[] = contiguousStrides(shape),
): StridedBytes | undefined {
  if (shape.includes(0)) return undefined;
  const loops = shape.map((count, dim) => ({ count, stride: strides[dim]! * itemBytes }));
  return strided(Number(address), loops, itemBytes);
}

/** The same for a tensor of a given element type; strides of packed types count as the planner counts them. */
export function stridedOfType(
  address: bigint,
  shape: readonly number[],
  dtype: DType,
  strides: readonly number[] = contiguousStrides(shape),
): StridedBytes | undefined {
  const unit = unitOf(dtype);
  if (unit.elements === 1) return stridedOfTensor(address, shape, unit.bytes, strides);
  const last = shape.length - 1;
  const inUnits = (value: number) => value / unit.elements;
  return stridedOfTensor(
    address,
    shape.with(last, inUnits(shape[last]!)),
    unit.bytes,
    strides.map((stride, dim) => (dim === last ? 1 : inUnits(stride))),
  );
}

/** One past the last byte. */
export function endOf(view: StridedBytes): number {
  return view.start + extent(view, 0);
}

/** True if the two sets share a byte. Exact; the work is that of the smaller interleaving, not of the elements. */
export function overlaps(a: StridedBytes, b: StridedBytes): boolean {
  return meets({ view: a, start: a.start, loop: 0 }, { view: b, start: b.start, loop: 0 });
}

/** True if two different elements of the view share a byte. */
export function overlapsItself(view: StridedBytes): boolean {
  return view.loops.some(({ count, stride }, loop) => {
    const inner = extent(view, loop + 1);
    for (let step = 1; step < count && step * stride < inner; step++) {
      const shifted = { view, start: step * stride, loop: loop + 1 };
      if (meets({ view, start: 0, loop: loop + 1 }, shifted)) return true;
    }
    return false;
  });
}

export function gcd(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return x;
}

/** Sorted, with a run as long as it can be. */
function strided(start: number, loops: readonly StridedLoop[], run: number): StridedBytes {
  const sorted = loops.filter(({ count }) => count > 1).sort((a, b) => b.stride - a.stride);
  let joined = run;
  while (sorted.at(-1)?.stride === joined) joined *= sorted.pop()!.count;
  return { start, loops: sorted, run: joined };
}

/** Bytes from the first to one past the last of the loops from `loop` on. */
function extent({ loops, run }: StridedBytes, loop: number): number {
  let bytes = run;
  for (let index = loop; index < loops.length; index++) {
    bytes += (loops[index]!.count - 1) * loops[index]!.stride;
  }
  return bytes;
}

/** One step of a view's outer loops: what is left of it from a place on. */
interface Rest {
  readonly view: StridedBytes;
  readonly start: number;
  readonly loop: number;
}

function meets(a: Rest, b: Rest): boolean {
  const aBytes = extent(a.view, a.loop);
  const bBytes = extent(b.view, b.loop);
  if (a.start + aBytes <= b.start || b.start + bBytes <= a.start) return false;
  const aLeft = a.view.loops.length - a.loop;
  const bLeft = b.view.loops.length - b.loop;
  if (aLeft + bLeft === 0) return true;
  if (!meetsModulo(a, b)) return false;
  return aLeft > 0 && (bLeft === 0 || aBytes >= bBytes) ? anyStepMeets(a, b) : anyStepMeets(b, a);
}

/** Both repeat with the common divisor of all strides: what does not meet within it never meets. */
function meetsModulo(a: Rest, b: Rest): boolean {
  let period = 0;
  for (let index = a.loop; index < a.view.loops.length; index++) {
    period = gcd(period, a.view.loops[index]!.stride);
  }
  for (let index = b.loop; index < b.view.loops.length; index++) {
    period = gcd(period, b.view.loops[index]!.stride);
  }
  if (period === 0) return true;
  const ahead = (((a.start - b.start) % period) + period) % period;
  return ahead < b.view.run || ahead + a.view.run > period;
}

/** Takes the outermost loop of `a` apart, as far as its steps reach into the extent of `b`. */
function anyStepMeets(a: Rest, b: Rest): boolean {
  const { count, stride } = a.view.loops[a.loop]!;
  if (stride === 0) return meets({ ...a, loop: a.loop + 1 }, b);
  const inner = extent(a.view, a.loop + 1);
  const bEnd = b.start + extent(b.view, b.loop);
  const first = Math.max(0, Math.floor((b.start - a.start - inner) / stride) + 1);
  const last = Math.min(count - 1, Math.ceil((bEnd - a.start) / stride) - 1);
  for (let step = first; step <= last; step++) {
    if (meets({ view: a.view, start: a.start + step * stride, loop: a.loop + 1 }, b)) return true;
  }
  return false;
}
