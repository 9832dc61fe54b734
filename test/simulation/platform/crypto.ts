/** In place of `node:crypto`: the same but for chance, which is the world's once there is one, and hashes, each taken once. */
import {
  type BinaryToTextEncoding,
  createHash as realHash,
  randomBytes as realRandomBytes,
} from "node:crypto";
import { currentPlatform } from "./current.ts";

export { createHmac, timingSafeEqual } from "node:crypto";

export function randomBytes(size: number): Buffer {
  const world = currentPlatform();
  if (world === undefined) return realRandomBytes(size);
  return Buffer.from(Array.from({ length: size }, () => world.chance.integer(0, 255)));
}

/** Names of batches, pairs and sides come again in every key. */
const digests = new Map<string, Buffer>();
const mostDigests = 10_000;

class RememberedHash {
  readonly #algorithm: string;
  readonly #parts: Buffer[] = [];

  constructor(algorithm: string) {
    this.#algorithm = algorithm;
  }

  update(data: string | Uint8Array): this {
    this.#parts.push(Buffer.from(data as string));
    return this;
  }

  digest(): Buffer;
  digest(encoding: BinaryToTextEncoding): string;
  digest(encoding?: BinaryToTextEncoding): Buffer | string {
    const bytes = Buffer.concat(this.#parts);
    const key = `${this.#algorithm} ${bytes.toString("latin1")}`;
    const digest = digests.get(key) ?? realHash(this.#algorithm).update(bytes).digest();
    if (digests.size < mostDigests) digests.set(key, digest);
    return encoding === undefined ? Buffer.from(digest) : digest.toString(encoding);
  }
}

export function createHash(algorithm: string): RememberedHash {
  return new RememberedHash(algorithm);
}
