/** A small generator with a seed (mulberry32), so that random cases are the same everywhere and every time. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 to 2^32 - 1. */
  word(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** `from` to `to`, both included. */
  integer(from: number, to: number): number {
    return from + (this.word() % (to - from + 1));
  }

  chance(percent: number): boolean {
    return this.integer(1, 100) <= percent;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.integer(0, list.length - 1)]!;
  }

  shuffle<T>(list: readonly T[]): T[] {
    const shuffled = [...list];
    for (let index = shuffled.length - 1; index > 0; index--) {
      const other = this.integer(0, index);
      [shuffled[index], shuffled[other]] = [shuffled[other]!, shuffled[index]!];
    }
    return shuffled;
  }
}

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
