import { fail } from "./check.ts";

const utf8 = new TextEncoder();
const fromUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Little-endian integers, LEB128 numbers up to 2^53, text and lists, into bytes that grow. */
export class Writer {
  #buffer: Uint8Array<ArrayBuffer>;
  #length = 0;

  constructor(capacity = 256) {
    this.#buffer = new Uint8Array(capacity);
  }

  bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.#length);
  }

  u8(value: number): void {
    this.#reserve(1);
    this.#buffer[this.#length++] = value;
  }

  u16(value: number): void {
    this.u8(value & 0xff);
    this.u8(value >>> 8);
  }

  u32(value: number): void {
    this.u16(value & 0xffff);
    this.u16(value >>> 16);
  }

  /** A whole number of 0 and more. */
  number(value: number): void {
    this.#reserve(8);
    let rest = value;
    while (rest >= 0x80) {
      this.#buffer[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#buffer[this.#length++] = rest;
  }

  /** A whole number of any sign, below 2^52. */
  signed(value: number): void {
    this.number(value < 0 ? -2 * value - 1 : 2 * value);
  }

  text(value: string): void {
    // Names are short and nearly always ASCII: one byte a unit, without a call into the encoder.
    this.#reserve(value.length + 8);
    const start = this.#length;
    if (value.length < 0x80) {
      this.#buffer[this.#length++] = value.length;
      for (let index = 0; index < value.length; index++) {
        const unit = value.charCodeAt(index);
        if (unit >= 0x80) break;
        this.#buffer[this.#length++] = unit;
      }
      if (this.#length === start + 1 + value.length) return;
      this.#length = start;
    }
    const encoded = utf8.encode(value);
    if (fromUtf8.decode(encoded) !== value) {
      throw fail("TB_PLAN_INPUT", `a name is not Unicode text: ${JSON.stringify(value)}`, {
        name: value,
      });
    }
    this.number(encoded.length);
    this.raw(encoded);
  }

  list<T>(items: readonly T[], write: (item: T) => void): void {
    this.number(items.length);
    for (const item of items) write(item);
  }

  raw(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#buffer.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  #reserve(bytes: number): void {
    if (this.#length + bytes <= this.#buffer.length) return;
    const larger = new Uint8Array(Math.max(this.#buffer.length * 2, this.#length + bytes));
    larger.set(this.#buffer);
    this.#buffer = larger;
  }
}

/** The inverse of `Writer`; never reads past the end, never trusts a count. `TB_PLAN_FORMAT`. */
export class Reader {
  readonly #buffer: Uint8Array;
  #at = 0;

  constructor(buffer: Uint8Array) {
    this.#buffer = buffer;
  }

  u8(): number {
    const byte = this.#buffer[this.#at++];
    if (byte === undefined)
      throw fail("TB_PLAN_FORMAT", "the plan is truncated", { bytes: this.#buffer.length });
    return byte;
  }

  u16(): number {
    return this.u8() | (this.u8() << 8);
  }

  u32(): number {
    return this.u16() + this.u16() * 2 ** 16;
  }

  number(): number {
    let value = 0;
    for (let scale = 1; scale < 2 ** 56; scale *= 0x80) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80 && Number.isSafeInteger(value)) return value;
    }
    throw fail("TB_PLAN_FORMAT", "the plan is damaged: a number exceeds 2^53", { at: this.#at });
  }

  signed(): number {
    const value = this.number();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  text(): string {
    const length = this.number();
    this.expect(length);
    const bytes = this.#buffer.subarray(this.#at, this.#at + length);
    this.#at += length;
    try {
      return fromUtf8.decode(bytes);
    } catch (cause) {
      throw fail("TB_PLAN_FORMAT", "the plan is damaged: a text is not UTF-8", { cause: String(cause) });
    }
  }

  list<T>(read: () => T): T[] {
    const count = this.number();
    this.expect(count);
    return Array.from({ length: count }, read);
  }

  /** One of the entries, by the number that comes next, or a number that was read. */
  entry<T>(entries: readonly T[], index = this.u8()): T {
    if (index >= entries.length) {
      throw fail("TB_PLAN_FORMAT", `the plan is damaged: it refers to entry ${index} of ${entries.length}`, {
        at: this.#at,
      });
    }
    return entries[index]!;
  }

  /** Fails unless as many bytes are left: whatever was counted takes at least a byte each. */
  expect(count: number): void {
    if (count > this.#buffer.length - this.#at) {
      throw fail("TB_PLAN_FORMAT", "the plan is truncated", { bytes: this.#buffer.length, wanted: count });
    }
  }
}
