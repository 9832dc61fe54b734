import { TensorBusError } from "../errors.ts";
import type { StoreCapabilities } from "./store.ts";

/** The default of `namespace` of every store. */
export const defaultNamespace = "tensorbus";
const maxNamespaceBytes = 1024;
/** Half a character, which has no UTF-8: two different keys would become one. */
const loneSurrogate = /\p{Surrogate}/u;
const plainKey = /^[\x20-\x7e]+$/;

/**
 * What stands before a key in a shared store: `/namespace/`, which is how a `PrefixStore` of torch over a `TCPStore`
 * writes it. The empty namespace is the whole store, `/`: it is for talking to programs that know no namespaces.
 * `TB_STORE_OPTIONS` if the namespace holds a slash (two namespaces could then meet in one key) or is too long.
 */
export function keyPrefix(namespace: string): string {
  const bytes = Buffer.byteLength(namespace);
  if (namespace.includes("/") || bytes > maxNamespaceBytes || loneSurrogate.test(namespace)) {
    throw new TensorBusError("TB_STORE_OPTIONS", `a namespace cannot be ${JSON.stringify(namespace)}`, {
      details: { namespace, maxNamespaceBytes },
    });
  }
  return namespace === "" ? "/" : `/${namespace}/`;
}

/** `TB_STORE_VALUE` for a key that is empty, too long, or has no UTF-8 form of its own. */
export function checkKey(key: string, { maxKeyBytes }: StoreCapabilities): void {
  if (typeof key !== "string") throw new TypeError("a key of a store must be a string");
  // Nearly all keys are so plain that nothing of them has to be counted.
  if (3 * key.length <= maxKeyBytes && plainKey.test(key)) return;
  const bytes = Buffer.byteLength(key);
  if (bytes > 0 && bytes <= maxKeyBytes && !loneSurrogate.test(key)) return;
  throw new TensorBusError(
    "TB_STORE_VALUE",
    `a key has ${bytes} bytes or a lone surrogate: it needs 1 to ${maxKeyBytes} bytes of valid text`,
    {
      details: { bytes, maxKeyBytes },
    },
  );
}

/** `TB_STORE_VALUE` for a value that is empty or too long. */
export function checkValue(key: string, value: Uint8Array, { maxValueBytes }: StoreCapabilities): void {
  if (!(value instanceof Uint8Array)) throw new TypeError("a value of a store must be a Uint8Array");
  if (value.length > 0 && value.length <= maxValueBytes) return;
  throw new TensorBusError(
    "TB_STORE_VALUE",
    `the value of ${key} has ${value.length} bytes; it may have 1 to ${maxValueBytes}`,
    {
      details: { key, bytes: value.length, maxValueBytes },
    },
  );
}

/**
 * What a counter becomes: `current` is its decimal text, `undefined` for none yet. `TB_STORE_VALUE` if that is no number,
 * or the sum does not fit into 64 bits.
 */
export function addToCounter(key: string, current: Uint8Array | undefined, delta: bigint): bigint {
  // A sign and 19 digits, at most: no more of a stranger's value is looked at.
  const text = current === undefined ? "0" : Buffer.from(current.subarray(0, 21)).toString("latin1");
  if (!/^-?\d{1,19}$/.test(text)) {
    throw new TensorBusError("TB_STORE_VALUE", `the value of ${key} is not a counter`, { details: { key } });
  }
  const sum = BigInt(text) + delta;
  if (BigInt.asIntN(64, sum) === sum) return sum;
  throw new TensorBusError("TB_STORE_VALUE", `the counter ${key} would exceed 64 bits`, {
    details: { key, sum },
  });
}

/** True if two values are the same; `undefined` is the value of a key that does not exist. */
export function sameValue(one: Uint8Array | undefined, other: Uint8Array | undefined): boolean {
  if (one === undefined || other === undefined) return one === other;
  return Buffer.compare(one, other) === 0;
}
