/**
 * Numbers non-negative safe integers 0, 1, 2, ... in the order in which they come first. A `Map` whose keys are larger than 31 bits
 * makes an object of every key; here they lie in a flat table with open addressing.
 */
export class Places {
  #count = 0;
  /** The keys by their place. */
  #keys: Float64Array;
  /** One more than the place of the key that hashes here or before; 0 if nothing does. */
  #slots: Uint32Array;

  /** @param expected how many keys are likely to come; more may. */
  constructor(expected: number) {
    const capacity = 2 ** Math.ceil(Math.log2(Math.max(16, expected)));
    this.#keys = new Float64Array(capacity);
    this.#slots = new Uint32Array(capacity * 2);
  }

  get count(): number {
    return this.#count;
  }

  /** The place of a key, which is new if the key is. */
  placeOf(key: number): number {
    let slot = this.#slotOf(key);
    const found = this.#slots[slot]!;
    if (found > 0) return found - 1;
    if (this.#count === this.#keys.length) {
      this.#grow();
      slot = this.#slotOf(key);
    }
    this.#keys[this.#count] = key;
    this.#slots[slot] = ++this.#count;
    return this.#count - 1;
  }

  /** The slot of a key, or the free one that it would take; at most half of all slots are taken. */
  #slotOf(key: number): number {
    const mask = this.#slots.length - 1;
    let slot = hash(key) & mask;
    for (let taken = this.#slots[slot]!; taken > 0; taken = this.#slots[slot]!) {
      if (this.#keys[taken - 1] === key) break;
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  #grow(): void {
    const keys = this.#keys;
    this.#keys = new Float64Array(keys.length * 2);
    this.#keys.set(keys);
    this.#slots = new Uint32Array(keys.length * 4);
    for (let place = 0; place < this.#count; place++) this.#slots[this.#slotOf(keys[place]!)] = place + 1;
  }
}

function hash(key: number): number {
  const high = Math.floor(key / 2 ** 32);
  const low = key - high * 2 ** 32;
  let value = Math.imul((low | 0) ^ Math.imul(high, 0x85ebca6b), 0x9e3779b1);
  value ^= value >>> 15;
  value = Math.imul(value, 0x2c1b3c6d);
  return value ^ (value >>> 13);
}
