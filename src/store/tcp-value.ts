import { WireError, wireLimits } from "./tcp-protocol.ts";

/** Values up to this size are kept as text of one character a byte. */
const textBytes = 64 * 1024;
/** What the objects around a value take, beside its bytes: measured, and rounded up. */
const textOverheadBytes = 32;
const largeOverheadBytes = 384;

/**
 * A value that has memory of its own, with room to grow. Answers are sent from that memory, so that it is given back
 * only once it is neither stored nor on its way to anyone.
 */
export class LargeValue {
  #memory: Buffer;
  #length: number;
  /** One for being stored, and one for each answer under way. */
  #uses = 1;

  constructor(bytes: Uint8Array, capacity: number) {
    this.#memory = Buffer.allocUnsafeSlow(capacity);
    this.#memory.set(bytes);
    this.#length = bytes.length;
  }

  get length(): number {
    return this.#length;
  }

  /** What it takes, until the last use of it has ended. */
  get heldBytes(): number {
    return this.#memory.length + largeOverheadBytes;
  }

  get bytes(): Buffer {
    return this.#memory.subarray(0, this.#length);
  }

  /** Appends in the room that is left; false if there is not enough. What was given away of it does not change. */
  append(bytes: Uint8Array): boolean {
    if (bytes.length > this.#memory.length - this.#length) return false;
    this.#memory.set(bytes, this.#length);
    this.#length += bytes.length;
    return true;
  }

  /** True if nobody uses it but who asks. */
  get isLastUse(): boolean {
    return this.#uses === 1;
  }

  use(): void {
    this.#uses += 1;
  }

  /** True if that was the last use. */
  endUse(): boolean {
    this.#uses -= 1;
    return this.#uses === 0;
  }
}

/**
 * A value as the table keeps it. Small ones are text: a Buffer of a few bytes takes ten times as much, and may keep
 * others' memory from being given back.
 */
export type StoredValue = string | LargeValue;

export function storedValue(bytes: Buffer): StoredValue {
  return bytes.length <= textBytes ? bytes.toString("latin1") : new LargeValue(bytes, bytes.length);
}

export function heldBytes(value: StoredValue): number {
  return typeof value === "string" ? value.length + textOverheadBytes : value.heldBytes;
}

export function bytesOf(value: StoredValue): Buffer {
  return typeof value === "string" ? Buffer.from(value, "latin1") : value.bytes;
}

export function isEqual(value: StoredValue, bytes: Buffer): boolean {
  return value.length === bytes.length && bytesOf(value).equals(bytes);
}

/** The value with `bytes` behind it, in place if there is room; what is made anew has room for as much again. */
export function appended(value: StoredValue, bytes: Buffer): StoredValue {
  const length = value.length + bytes.length;
  if (length > wireLimits.valueBytes) throw new WireError(`APPEND would make a value of ${length} bytes`);
  if (typeof value !== "string" && value.append(bytes)) return value;
  const capacity = Math.min(2 * length, wireLimits.valueBytes);
  const grown = new LargeValue(bytesOf(value), capacity);
  grown.append(bytes);
  return grown;
}

/**
 * A counter's text as C reads a number: leading white space, a sign, digits, and whatever follows is not looked at. No
 * number, or one beyond 64 bits, ends the connection, as it does in torch. So does one that takes more than 128
 * characters to write, which C would read as well.
 */
export function counterOf(value: StoredValue): bigint {
  const most = 128;
  const text = typeof value === "string" ? value : value.bytes.toString("latin1", 0, most + 1);
  const match = /^[ \t\n\v\f\r]*([+-]?)(\d+)/.exec(text.slice(0, most + 1));
  if (match === null || match[0].length > most) throw new WireError("ADD needs a value that is a number");
  const number = match[1] === "-" ? -BigInt(match[2]!) : BigInt(match[2]!);
  if (BigInt.asIntN(64, number) !== number) throw new WireError("ADD would exceed 64 bits");
  return number;
}
