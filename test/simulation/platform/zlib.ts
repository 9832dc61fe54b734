/** In place of `node:zlib`: the tables of the few layouts that are simulated are packed and unpacked once each. */
import { deflateSync as realDeflate, inflateSync as realInflate } from "node:zlib";

const packed = new Map<string, Buffer>();
const unpacked = new Map<string, Buffer>();

function once(known: Map<string, Buffer>, bytes: Uint8Array, work: () => Buffer): Buffer {
  const key = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
  const value = known.get(key) ?? work();
  known.set(key, value);
  return Buffer.from(value);
}

export function deflateSync(bytes: Uint8Array, options: object): Buffer {
  return once(packed, bytes, () => realDeflate(bytes, options));
}

export function inflateSync(bytes: Uint8Array, options: object): Buffer {
  return once(unpacked, bytes, () => realInflate(bytes, options));
}
