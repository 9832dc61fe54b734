/** The library as it was built: what its ELF file says of how it is protected. Read by hand: no tool need be installed. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const file = readFileSync(join(import.meta.dirname, "../../native/build/libtensorbus.so"));

/** Program headers and dynamic entries of a 64-bit little-endian file. */
function readElf(elf: Buffer) {
  expect(elf.subarray(0, 6)).toEqual(Buffer.from([0x7f, 0x45, 0x4c, 0x46, 2, 1]));
  const [at, size, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)];
  const headers = Array.from({ length: count }, (_, index) => {
    const from = at + index * size;
    return {
      type: elf.readUInt32LE(from),
      flags: elf.readUInt32LE(from + 4),
      offset: Number(elf.readBigUInt64LE(from + 8)),
      bytes: Number(elf.readBigUInt64LE(from + 32)),
    };
  });
  const dynamic = headers.find(({ type }) => type === 2)!;
  const entries = new Map<number, bigint>();
  for (let from = dynamic.offset; from < dynamic.offset + dynamic.bytes; from += 16) {
    entries.set(Number(elf.readBigInt64LE(from)), elf.readBigUInt64LE(from + 8));
  }
  return { headers, entries };
}

describe("the native library", () => {
  const { headers, entries } = readElf(file);

  it("has a table of functions that is read-only once it is loaded", () => {
    const relro = 0x6474e552;
    expect(headers.some(({ type }) => type === relro)).toBe(true);
    const [flags, flags1] = [entries.get(30) ?? 0n, entries.get(0x6ffffffb) ?? 0n];
    // DF_BIND_NOW or DF_1_NOW.
    expect((flags & 8n) | (flags1 & 1n)).not.toBe(0n);
  });

  it("has no memory that is written and run", () => {
    const [run, write] = [1, 2];
    for (const { flags } of headers) expect(flags & (run | write)).not.toBe(run | write);
    expect(headers.some(({ type }) => type === 0x6474e551)).toBe(true);
    // No text that is relocated: DT_TEXTREL.
    expect(entries.has(22)).toBe(false);
  });

  it("checks its stack, and copies whose size the compiler knows", () => {
    const names = file.toString("latin1");
    expect(names).toMatch(/\0__stack_chk_fail\0/);
    expect(names).toMatch(/\0__(memcpy|memset|memmove|snprintf|vsnprintf|read|pread)_chk\0/);
  });
});
