/** A number that depends on all of its arguments and on nothing else: values of tensors, without any state. */
export function mix(...words: readonly number[]): number {
  return mixOn(0x811c9dc5, words);
}

/** The number of all words that `hash` is of, and of these. */
export function mixOn(hash: number, words: readonly number[]): number {
  let mixed = hash;
  for (let index = 0; index < words.length; index++) {
    mixed = Math.imul(mixed ^ (words[index]! >>> 0), 0x01000193);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x2c1b3c6d);
    mixed ^= mixed >>> 13;
  }
  return mixed >>> 0;
}
