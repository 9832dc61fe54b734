/** In place of `node:crypto`: the same but for chance, which is the world's once there is one. */
import { randomBytes as realRandomBytes } from "node:crypto";
import { currentPlatform } from "./current.ts";

export { createHash, createHmac, timingSafeEqual } from "node:crypto";

export function randomBytes(size: number): Buffer {
  const world = currentPlatform();
  if (world === undefined) return realRandomBytes(size);
  return Buffer.from(Array.from({ length: size }, () => world.chance.integer(0, 255)));
}
