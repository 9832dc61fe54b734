/** Enough that a part of a few million entries is made larger within milliseconds. */
const parts = 256;

/**
 * A map of text keys in 256 parts. A single map that has grown to millions of entries stops the process for a good part
 * of a second when it grows further; a part of this one does not.
 */
export class ShardedMap<Value> {
  readonly #parts: Map<string, Value>[] = [];
  #size = 0;

  get size(): number {
    return this.#size;
  }

  has(key: string): boolean {
    return this.#part(key)?.has(key) ?? false;
  }

  get(key: string): Value | undefined {
    return this.#part(key)?.get(key);
  }

  set(key: string, value: Value): void {
    const index = partOf(key);
    const part = this.#parts[index] ?? new Map<string, Value>();
    this.#parts[index] = part;
    this.#size -= part.size;
    part.set(key, value);
    this.#size += part.size;
  }

  delete(key: string): boolean {
    const deleted = this.#part(key)?.delete(key) ?? false;
    if (deleted) this.#size -= 1;
    return deleted;
  }

  *keys(): Generator<string> {
    for (const part of this.#parts) if (part !== undefined) yield* part.keys();
  }

  #part(key: string): Map<string, Value> | undefined {
    return this.#parts[partOf(key)];
  }
}

/** By the end of a key, where those of one job differ. Keys that all fall into one part are no worse off than in one map. */
function partOf(key: string): number {
  let hash = key.length;
  for (let at = Math.max(0, key.length - 16); at < key.length; at += 1) {
    hash = (Math.imul(hash, 31) + key.charCodeAt(at)) | 0;
  }
  return (hash ^ (hash >>> 8) ^ (hash >>> 16)) & (parts - 1);
}
