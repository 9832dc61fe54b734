import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { dtypes, isPacked, itemSize } from "../../src/layout/index.ts";
import { duplicateKey } from "../../src/model/json-keys.ts";
import { headerLength, layOutHeader, parseHeader, prefixBytes } from "../../src/model/safetensors-header.ts";
import { readPlainHeader } from "../../src/model/safetensors-plain.ts";

fc.configureGlobal({ seed: 20_261 });

const tensors = fc.uniqueArray(
  fc.record({
    name: fc.string({ unit: "binary", minLength: 1 }).filter((name) => name !== "__metadata__"),
    shape: fc.array(fc.nat(5), { maxLength: 4 }),
    dtype: fc.constantFrom(...dtypes.filter((dtype) => !isPacked(dtype))),
  }),
  { selector: ({ name }) => name, maxLength: 6 },
);

/** Reads the head of a file as opening one does. */
function read(head: Uint8Array, fileBytes: number) {
  const length = headerLength(head.subarray(0, prefixBytes), fileBytes, "file");
  return parseHeader(head.subarray(prefixBytes, prefixBytes + length), fileBytes, "file");
}

describe("headers", () => {
  test("of any tensors read as they were laid out, and cover the file once", () => {
    fc.assert(
      fc.property(tensors, (list) => {
        const { head, positions, sizes, fileBytes } = layOutHeader(list, { note: "x" }, "file");
        const entries = list.map((tensor, index) => ({
          ...tensor,
          position: positions[index]!,
          bytes: sizes[index]!,
        }));
        const parsed = read(head, fileBytes);
        const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
        expect([...parsed.entries].sort(byName)).toEqual([...entries].sort(byName));
        expect(parsed.metadata).toEqual({ note: "x" });
        const bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
        expect(head.length + bytes).toBe(fileBytes);
        for (const { position, dtype } of entries) expect(position % itemSize(dtype)).toBe(0);
      }),
      { seed: 7, numRuns: 300 },
    );
  });

  test("that were changed anywhere are read or refused, and tensors never leave the file", () => {
    const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
    let refused = 0;
    fc.assert(
      fc.property(tensors, changes, (list, edits) => {
        const { head, fileBytes } = layOutHeader(list, {}, "file");
        for (const [at, byte] of edits) head[at % head.length] = byte;
        try {
          for (const { position, bytes } of read(head, fileBytes).entries) {
            expect(position >= prefixBytes && position + bytes <= fileBytes).toBe(true);
          }
        } catch (error) {
          if (!(error instanceof TensorBusError)) throw error;
          expect(["TB_SAFETENSORS", "TB_DTYPE"]).toContain(error.code);
          refused++;
        }
      }),
      { seed: 8, numRuns: 2000 },
    );
    expect(refused).toBeGreaterThan(1000);
  });
});

describe("duplicateKey", () => {
  test("finds none in what JSON.stringify writes, and the one that was put in twice", () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue()), fc.string(), (value, key) => {
        const once = JSON.stringify({ ...value, [key]: [value] });
        expect(duplicateKey(once)).toBeUndefined();
        const twice = `${once.slice(0, -1)},${JSON.stringify(key)}:0}`;
        expect(duplicateKey(twice)).toBe(key);
      }),
      { seed: 9, numRuns: 500 },
    );
  });
});

describe("plain headers", () => {
  const text = (head: Uint8Array) => new TextDecoder().decode(head.subarray(prefixBytes));
  /** What JSON says of a header that is plain, or undefined. */
  const check = (json: string): boolean => {
    const plain = readPlainHeader(json);
    if (plain === undefined) return false;
    const { __metadata__: metadata, ...fields } = JSON.parse(
      plain.metadata === undefined ? json : json.replace(plain.metadata, "{}"),
    ) as Record<string, unknown>;
    expect(metadata !== undefined).toBe(plain.metadata !== undefined);
    const entries = plain.entries.map(({ name, dtype, shape, offsets }) => [
      name,
      { dtype, shape, data_offsets: offsets },
    ]);
    expect(Object.fromEntries(entries)).toEqual(fields);
    expect(entries.length).toBe(Object.keys(fields).length);
    expect(duplicateKey(json)).toBeUndefined();
    return true;
  };

  test("say what JSON says of them, also after changes: else they are left to the general reader", () => {
    // Half of the changes are to what matters in JSON.
    const edit = fc.tuple(fc.nat(), fc.oneof(fc.nat(127), fc.constantFrom(...Buffer.from('",:{}[]\\0 e.-'))));
    let [plain, changed] = [0, 0];
    const named = fc.string({
      unit: fc.constantFrom("a", "b", ".", ",", "]", "{", "é", "\\", "\n"),
      maxLength: 3,
    });
    const list = fc.uniqueArray(
      fc.record({
        name: named,
        shape: fc.array(fc.nat(12), { maxLength: 3 }),
        dtype: fc.constantFrom("float32", "bool"),
      }),
      { selector: ({ name }) => name, maxLength: 4 },
    );
    fc.assert(
      fc.property(list, fc.array(edit, { maxLength: 2 }), fc.boolean(), (tensors, edits, isNoted) => {
        const { head } = layOutHeader(tensors as never, isNoted ? { format: "pt", note: "a{b" } : {}, "file");
        for (const [at, byte] of edits) head[prefixBytes + (at % (head.length - prefixBytes))] = byte;
        if (check(text(head))) [plain, changed] = [plain + 1, changed + Math.min(1, edits.length)];
      }),
      { seed: 9, numRuns: 5000 },
    );
    expect(plain).toBeGreaterThan(500);
    expect(changed).toBeGreaterThan(100);
  });

  test("have no second name, no escape, no other number, and nothing behind their end", () => {
    const entry = (name: string, shape = "2", end = "8") =>
      `"${name}":{"dtype":"F32","shape":[${shape}],"data_offsets":[0,${end}]}`;
    expect(check(`{${entry("a")},${entry("b")}}  `)).toBe(true);
    expect(check(`{"__metadata__":{"format":"pt"},${entry("a", "")}}`)).toBe(true);
    const others = [
      "{}",
      "",
      `{${entry("a")},${entry("a")}}`,
      `{${entry("a")},}`,
      `{${entry("a")}}x`,
      `{${entry("a")}}\u00a0`,
      `{${entry("\\u0061")}}`,
      `{${entry("a", "02")}}`,
      `{${entry("a", "2.0")}}`,
      `{${entry("a", "-2")}}`,
      `{${entry("a", "2,")}}`,
      `{${entry("a", "2", "9007199254740993")}}`,
      `{${entry("a", `${"1,".repeat(600)}1`)}}`,
      `{"__metadata__":{"a":{}},${entry("a")}}`,
      `{"__metadata__":{},"__metadata__":{},${entry("a")}}`,
    ];
    for (const json of others) expect(readPlainHeader(json), json.slice(0, 60)).toBeUndefined();
  });
});
