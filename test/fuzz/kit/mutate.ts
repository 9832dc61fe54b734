/** Changes of inputs, by a seeded generator: the same seed gives the same inputs on every machine. */

const telling = [0, 1, 2, 0x7f, 0x80, 0xc1, 0xd4, 0xfe, 0xff];
const numbers = [
  0n,
  1n,
  0x7fn,
  0xffn,
  0xffffn,
  0x7fffffffn,
  0xffffffffn,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 64n - 1n,
];

export class Mutator {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed * 2654435761 + 1) >>> 0 || 1;
  }

  below(limit: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % limit;
  }

  /** One of the corpus, changed in a few places. */
  next(corpus: readonly Uint8Array[]): Buffer {
    let bytes: Buffer = Buffer.from(corpus[this.below(corpus.length)]!);
    for (let changes = this.below(4) + (this.below(20) === 0 ? 0 : 1); changes > 0; changes -= 1) {
      bytes = this.#change(bytes, corpus);
    }
    return bytes;
  }

  #change(bytes: Buffer, corpus: readonly Uint8Array[]): Buffer {
    const at = this.below(bytes.length + 1);
    const end = Math.min(bytes.length, at + 1 + this.below(this.below(4) === 0 ? 4096 : 16));
    switch (this.below(8)) {
      case 0:
        return bytes.subarray(0, at);
      case 1:
        return Buffer.concat([bytes.subarray(0, at), bytes.subarray(end)]);
      case 2:
        return Buffer.concat([bytes.subarray(0, end), bytes.subarray(at)]);
      case 3: {
        const other = corpus[this.below(corpus.length)]!;
        const from = this.below(other.length + 1);
        return Buffer.concat([bytes.subarray(0, at), other.subarray(from), bytes.subarray(end)]);
      }
      case 4: {
        const word = Buffer.alloc(8);
        word.writeBigUInt64LE(numbers[this.below(numbers.length)]!);
        return overwritten(bytes, at, word.subarray(0, 1 << this.below(4)));
      }
      case 5:
        return overwritten(bytes, at, Buffer.of(telling[this.below(telling.length)]!));
      case 6:
        return overwritten(bytes, at, Buffer.of((bytes[at] ?? 0) ^ (1 << this.below(8))));
      default:
        return overwritten(bytes, at, Buffer.of(this.below(256)));
    }
  }
}

function overwritten(bytes: Buffer, at: number, by: Uint8Array): Buffer {
  const changed = Buffer.from(bytes);
  changed.set(by.subarray(0, Math.max(0, bytes.length - at)), Math.min(at, bytes.length));
  return changed;
}
