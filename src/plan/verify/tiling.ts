/** Boxes in one index space, flat: for each its offsets, then its lengths. */
export interface Boxes {
  readonly count: number;
  offset(box: number, dim: number): number;
  length(box: number, dim: number): number;
}

/** A place of an index space, and how many boxes hold it. */
interface Uneven {
  readonly at: readonly number[];
  readonly count: number;
}

/**
 * Proves that boxes, all within `shape`, hold every index of it exactly once; else says a place where they do not.
 *
 * How often a place is held is a function f of finite support; its mixed difference over all dimensions, which has 2^n
 * signed points a box (its corners), determines it. So f is 1 all over `shape` if and only if the corners of the boxes
 * add up to those of `shape`: one pass, with no box compared to another. At the lexicographically least point where they
 * do not, nothing before it differs, so the difference there is that of f itself.
 */
export function findUneven(shape: readonly number[], boxes: Boxes): Uneven | undefined {
  if (shape.includes(0))
    return boxes.count === 0 ? undefined : { at: shape.map(() => 0), count: boxes.count };
  const dims = cutDims(shape, boxes);
  const points = dims.reduce((product, dim) => product * (shape[dim]! + 1), 1);
  const sums = points <= Number.MAX_SAFE_INTEGER ? cornerSums(shape, dims, boxes) : undefined;
  const [place, excess] = sums ? leastOf(sums) : leastOf(bigCornerSums(shape, dims, boxes));
  if (excess === 0) return undefined;
  return { at: coordinates(shape, dims, BigInt(place)), count: 1 + excess };
}

/** Dimensions that some box does not span; the others say nothing about where boxes lie. */
function cutDims(shape: readonly number[], boxes: Boxes): number[] {
  return shape.flatMap((extent, dim) => {
    for (let box = 0; box < boxes.count; box++) if (boxes.length(box, dim) !== extent) return [dim];
    return [];
  });
}

function leastOf<Key extends number | bigint>(sums: ReadonlyMap<Key, number>): [Key | 0, number] {
  let least: Key | undefined;
  for (const [key, sum] of sums) if (sum !== 0 && (least === undefined || key < least)) least = key;
  return least === undefined ? [0, 0] : [least, sums.get(least)!];
}

/** The signed corners of the boxes less those of the whole, by the row-major number of the corner. */
function cornerSums(shape: readonly number[], dims: readonly number[], boxes: Boxes): Map<number, number> {
  const sums = new Map<number, number>();
  const keys = new Float64Array(1 << dims.length);
  for (let box = -1; box < boxes.count; box++) {
    let filled = 1;
    keys[0] = 0;
    for (const dim of dims) {
      const low = box < 0 ? 0 : boxes.offset(box, dim);
      const high = box < 0 ? shape[dim]! : low + boxes.length(box, dim);
      for (let i = 0; i < filled; i++) {
        const base = keys[i]! * (shape[dim]! + 1);
        keys[i] = base + low;
        keys[i + filled] = base + high;
      }
      filled *= 2;
    }
    for (let i = 0; i < filled; i++) {
      const sign = box < 0 ? -cornerSign(i) : cornerSign(i);
      const sum = (sums.get(keys[i]!) ?? 0) + sign;
      if (sum === 0) sums.delete(keys[i]!);
      else sums.set(keys[i]!, sum);
    }
  }
  return sums;
}

/** The same for index spaces whose corners do not all have an exact number. */
function bigCornerSums(shape: readonly number[], dims: readonly number[], boxes: Boxes): Map<bigint, number> {
  const sums = new Map<bigint, number>();
  for (let box = -1; box < boxes.count; box++) {
    let keys = [0n];
    for (const dim of dims) {
      const low = BigInt(box < 0 ? 0 : boxes.offset(box, dim));
      const length = BigInt(box < 0 ? shape[dim]! : boxes.length(box, dim));
      const bases = keys.map((key) => key * BigInt(shape[dim]! + 1) + low);
      keys = [...bases, ...bases.map((base) => base + length)];
    }
    keys.forEach((key, i) => {
      sums.set(key, (sums.get(key) ?? 0) + (box < 0 ? -cornerSign(i) : cornerSign(i)));
    });
  }
  return sums;
}

/** Bit j of a corner's number says the far end of the j-th dimension; each far end turns the sign. */
function cornerSign(corner: number): number {
  let sign = 1;
  for (let bits = corner; bits !== 0; bits &= bits - 1) sign = -sign;
  return sign;
}

function coordinates(shape: readonly number[], dims: readonly number[], place: bigint): number[] {
  const at = shape.map(() => 0);
  let rest = place;
  for (const dim of dims.toReversed()) {
    const radix = BigInt(shape[dim]! + 1);
    at[dim] = Number(rest % radix);
    rest /= radix;
  }
  return at;
}
