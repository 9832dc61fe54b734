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
  const bytes = Buffer.allocUnsafe(size);
  for (let index = 0; index < size; index++) bytes[index] = world.chance.integer(0, 255);
  return bytes;
}

/** Names of batches, pairs and sides come again in every key. */
const digests = new Map<string, Buffer>();
const mostDigests = 10_000;
/** The same in text, of what is hashed as one string: by algorithm, encoding and string. */
const texts = new Map<string, string>();

class RememberedHash {
  readonly #algorithm: string;
  readonly #parts: (string | Uint8Array)[] = [];

  constructor(algorithm: string) {
    this.#algorithm = algorithm;
  }

  update(data: string | Uint8Array): this {
    this.#parts.push(typeof data === "string" ? data : Buffer.from(data));
    return this;
  }

  digest(): Buffer;
  digest(encoding: BinaryToTextEncoding): string;
  digest(encoding?: BinaryToTextEncoding): Buffer | string {
    if (encoding === undefined) return Buffer.from(this.#digest());
    const [only, ...more] = this.#parts;
    if (typeof only !== "string" || more.length > 0) return this.#digest().toString(encoding);
    const key = `${this.#algorithm} ${encoding} ${only}`;
    const text = texts.get(key) ?? this.#digest().toString(encoding);
    if (texts.size < mostDigests) texts.set(key, text);
    return text;
  }

  #digest(): Buffer {
    const bytes = Buffer.concat(this.#parts.map((part) => Buffer.from(part as string)));
    const key = `${this.#algorithm} ${bytes.toString("latin1")}`;
    const digest = digests.get(key) ?? realHash(this.#algorithm).update(bytes).digest();
    if (digests.size < mostDigests) digests.set(key, digest);
    return digest;
  }
}

export function createHash(algorithm: string): RememberedHash {
  return new RememberedHash(algorithm);
}
