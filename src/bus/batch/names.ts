/** Names of a batch's tensors: their order, and how two lists of them meet. */

/** What a tensor is known by in its batch: the index of its pair there, and its name. */
export interface TensorName {
  readonly pair: number;
  readonly name: string;
}

/** The order that all ranks share: by pair, then by name, shorter names first (so that indices count up). */
export function compareNames(a: TensorName, b: TensorName): number {
  return a.pair - b.pair || a.name.length - b.name.length || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
}

/** For each tensor of one sorted list its index in another sorted list, -1 if that has none of its name. */
export function alignNames(one: readonly TensorName[], other: readonly TensorName[]): Int32Array {
  const indices = new Int32Array(one.length).fill(-1);
  let at = 0;
  for (let index = 0; index < one.length; index++) {
    while (at < other.length && compareNames(other[at]!, one[index]!) < 0) at++;
    if (at < other.length && compareNames(other[at]!, one[index]!) === 0) indices[index] = at;
  }
  return indices;
}
