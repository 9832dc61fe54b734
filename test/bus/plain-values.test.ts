/** Messages are other processes' bytes: nothing in them is more than data, whatever a reader of MessagePack would make of it. */
import { addExtension, Packr, pack as packAnything } from "msgpackr";
import { describe, expect, it } from "vitest";
import { pack, unpack } from "../../src/bus/queue/commands.ts";
import { findNotPlain } from "../../src/bus/queue/plain-values.ts";

const bytes = (...values: number[]) => Uint8Array.from(values);

describe("plain values", () => {
  it.each([
    [null],
    [true],
    [0],
    [-1],
    [-33],
    [2 ** 40],
    [-(2 ** 40)],
    [1.5],
    [2n ** 63n],
    [-(2n ** 63n)],
    [""],
    ["ü".repeat(40)],
    ["x".repeat(300)],
    ["x".repeat(70_000)],
    [Uint8Array.of(1, 2)],
    [new Uint8Array(70_000)],
    [Array.from({ length: 20 }, (_, index) => index)],
    [Array.from({ length: 70_000 }, () => 0)],
    [{ a: { b: [undefined, { c: 1n }] } }],
    [Object.fromEntries(Array.from({ length: 20 }, (_, index) => [`k${index}`, index]))],
  ])("come back as they were (%#)", (value) => {
    const packed = pack(value);
    expect(findNotPlain(packed)).toBeUndefined();
    expect(packed.equals(pack(unpack(packed)))).toBe(true);
    // Each byte less, and one more, is another message.
    for (let length = Math.max(0, packed.length - 50); length < packed.length; length += 1) {
      expect(findNotPlain(packed.subarray(0, length))).toMatch(/ends too early/);
    }
    expect(findNotPlain(Uint8Array.of(...packed.subarray(0, 1), ...packed.subarray(1), 0xc0))).toMatch(
      /follow/,
    );
  });

  it.each([
    [
      "a record, for which the reader compiles code",
      new Packr({ useRecords: true }).pack([{ a: 1 }, { a: 2 }]),
    ],
    ["a date", packAnything(new Date(0))],
    ["a set", new Packr({ moreTypes: true }).pack(new Set([1]))],
    ["an error", new Packr({ moreTypes: true }).pack(new Error("x"))],
    ["an expression", new Packr({ moreTypes: true }).pack(/x/)],
    ["one byte of type 0x72", bytes(0xd4, 0x72, 0x40)],
    ["what no MessagePack is", bytes(0xc1)],
  ])("are never %s", (_, message) => {
    expect(findNotPlain(message)).toMatch(/extension/);
    expect(() => unpack(message)).toThrowError(expect.objectContaining({ code: "TB_COMMAND" }));
  });

  it("are not what somebody has taught the reader elsewhere", () => {
    let made = 0;
    addExtension({ type: 1, unpack: () => (made += 1) });
    expect(() => unpack(bytes(0xd4, 1, 0))).toThrowError(expect.objectContaining({ code: "TB_COMMAND" }));
    expect(made).toBe(0);
  });

  it.each([
    ["array of four thousand million", bytes(0xdd, 0xff, 0xff, 0xff, 0xff, 0)],
    ["map of four thousand million", bytes(0xdf, 0xff, 0xff, 0xff, 0xff, 0, 0)],
    ["text of four gigabytes", bytes(0xdb, 0xff, 0xff, 0xff, 0xff, 0)],
    ["bytes of four gigabytes", bytes(0xc6, 0xff, 0xff, 0xff, 0xff, 0)],
  ])("take no memory for an %s that is not there", (_, message) => {
    expect(findNotPlain(message)).toMatch(/ends too early/);
  });

  it("are nested no deeper than they need to be", () => {
    const deep = (levels: number) => Uint8Array.from([...Array(levels).fill(0x91), 0xc0]);
    expect(findNotPlain(deep(31))).toBeUndefined();
    expect(findNotPlain(deep(32))).toMatch(/nested/);
    expect(findNotPlain(deep(1_000_000))).toMatch(/nested/);
  });
});
