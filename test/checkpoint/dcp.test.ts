/** Distributed checkpoints: what torch wrote is read element by element, and what a hostile pickle asks for is refused. */
import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { PickledObject, readPickle } from "../../src/checkpoint/pickle.ts";
import { ResultFolder } from "../../src/checkpoint/result.ts";
import { dcpSource } from "../../src/checkpoint/source-dcp.ts";
import { modelTarget } from "../../src/checkpoint/target-model.ts";
import { move } from "../../src/memory/kernels.ts";
import { readAll, testFolder } from "./kit/folders.ts";

const folder = testFolder();
const golden = join(import.meta.dirname, "../golden/dcp");

type Expected = Record<string, [dtype: string, shape: number[], values: number[]]>;

async function readSource(source: Awaited<ReturnType<typeof dcpSource>>) {
  const into = join(folder(), "out");
  await ResultFolder.open(into, true);
  await moveCheckpoint({ source, files: modelTarget(source.tensors).files, folder: into, verify: true });
  return readAll(join(into, "model.safetensors"));
}

describe("a checkpoint that torch wrote from four ranks", () => {
  for (const [kind, prefix] of [
    ["model", ""],
    ["opt", "model."],
  ] as const) {
    it(`is read element by element (${kind})`, async () => {
      const expected = JSON.parse(readFileSync(join(golden, kind, "expected.json"), "utf8")) as Expected;
      const found = await readSource(await dcpSource(join(golden, kind), prefix));
      expect([...found.keys()].sort()).toEqual(Object.keys(expected).sort());
      for (const [name, [dtype, shape, values]] of Object.entries(expected)) {
        const tensor = found.get(name)!;
        expect([`torch.${tensor.dtype}`, tensor.shape], name).toEqual([dtype, shape]);
        const doubles = new Float64Array(values.length);
        move({ bytes: doubles, dtype: "float64" }, { bytes: tensor.bytes, dtype: tensor.dtype });
        expect([...doubles], name).toEqual(values);
      }
    });
  }

  it("has its optimizer beside it, and items that are no tensors are passed over", async () => {
    const source = await dcpSource(join(golden, "opt"));
    expect(source.tensors.some(({ name }) => name.includes("exp_avg"))).toBe(true);
    expect(source.unlisted).toBeGreaterThan(0);
    await expect(dcpSource(join(golden, "opt"), "absent.")).rejects.toMatchObject({ code: "TB_CHECKPOINT" });
  });
});

const text = (value: string) => [0x8c, value.length, ...Buffer.from(value)];
const pickleOf = (...bytes: number[]) => Uint8Array.from([0x80, 4, ...bytes, 0x2e]);
const table = new Set(["torch.Size", "collections.OrderedDict"]);
const read = (bytes: Uint8Array) => readPickle(bytes, table, "x");

describe("a pickle", () => {
  it("is data: globals of the table are named, and nothing is called", () => {
    const size = read(
      pickleOf(...text("torch"), ...text("Size"), 0x93, 0x4b, 3, 0x85, 0x85, 0x52),
    ) as PickledObject;
    expect(size).toBeInstanceOf(PickledObject);
    expect([size.global, size.args]).toEqual(["torch.Size", [[3]]]);
    expect(read(pickleOf(0x8a, 1, 0xff))).toBe(-1);
    expect(read(pickleOf(0x8a, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1))).toBe(2n ** 64n);
  });

  it("that is hostile is refused by name, unexecuted", () => {
    const marker = join(folder(), "executed");
    const system = [0x63, ...Buffer.from("os\nsystem\n"), ...text(`touch ${marker}`), 0x85, 0x52];
    const hostile: [string, Uint8Array][] = [
      ["os.system", pickleOf(...system)],
      ["builtins.eval", pickleOf(...text("builtins"), ...text("eval"), 0x93)],
      ["not a global", pickleOf(...text("torch"), 0x29, 0x52)],
      ["0x69", pickleOf(0x69)],
      ["ends inside of a value", pickleOf(0x58, 0xff, 0xff, 0xff, 0x7f)],
      ["recalls value", pickleOf(0x68, 7)],
      ["remembers", pickleOf(0x4e, 0x72, 0xff, 0xff, 0xff, 0xff)],
      ["not there", pickleOf(0x85)],
      ["has not begun", pickleOf(0x74)],
      ["not a dictionary", pickleOf(0x29, 0x4e, 0x4e, 0x73)],
      ["protocol 0", Uint8Array.from([0x80, 0, 0x4e, 0x2e])],
      // Lists of two that are the same list, forty deep: their text has 2^40 words.
      [
        "not a text",
        pickleOf(
          ...[0x29, 0x94],
          ...Array.from({ length: 40 }, (_, at) => [0x68, at, 0x68, at, 0x86, 0x94]).flat(),
          ...text("x"),
          0x93,
        ),
      ],
      ["wait on its stack", Uint8Array.from([0x80, 4, ...new Array(200_000).fill(0x28), 0x2e])],
    ];
    for (const [what, bytes] of hostile) {
      expect(() => read(bytes), what).toThrow(
        expect.objectContaining({ code: "TB_CHECKPOINT", message: expect.stringContaining(what) }),
      );
    }
    expect(existsSync(marker)).toBe(false);
    // Nested a million deep, it is read without recursion, and refused for what it is not.
    const deep = Uint8Array.from([0x80, 4, 0x29, ...new Array(1_000_000).fill(0x85), 0x2e]);
    expect(Array.isArray(read(deep))).toBe(true);
  });
});

describe("metadata that lie", () => {
  type Value = string | number | readonly Value[] | Map<Value, Value> | Global | Instance;
  interface Global {
    readonly global: string;
  }
  interface Instance extends Global {
    readonly state: readonly Value[] | Map<Value, Value>;
  }

  function encode(value: Value): number[] {
    if (typeof value === "string") return text(value);
    if (typeof value === "number") return [0x4a, ...new Uint8Array(Int32Array.of(value).buffer)];
    if (value instanceof Map) return [0x7d, 0x28, ...[...value].flat().flatMap((each) => encode(each)), 0x75];
    if (!("global" in value)) return [0x28, ...value.flatMap((each) => encode(each)), 0x74];
    const [, module, name] = /^(.*)\.([^.]*)$/.exec(value.global)!;
    const global = [...text(module!), ...text(name!), 0x93];
    return "state" in value ? [...global, 0x29, 0x81, ...encode(value.state), 0x62] : global;
  }

  const part = "torch.distributed.checkpoint";
  const record = (global: string, state: Record<string, Value>): Instance => ({
    global: `${part}.${global}`,
    state: new Map(Object.entries(state)),
  });

  /** Where torch has put the parts of a tensor of two dimensions: two of one size. */
  function twoParts() {
    const everything = { has: () => true } as unknown as ReadonlySet<string>;
    const metadata = readPickle(readFileSync(join(golden, "model", ".metadata")), everything, "golden");
    const fieldOf = (object: unknown, name: string) =>
      ((object as PickledObject).state as Map<string, unknown>).get(name);
    const infos = fieldOf(metadata, "storage_data") as Map<unknown, unknown>;
    const found = new Map<string, { file: string; offset: number; length: number }[]>();
    for (const [index, info] of infos) {
      const name = fieldOf(index, "fqn") as string;
      const place = {
        file: fieldOf(info, "relative_path") as string,
        offset: fieldOf(info, "offset") as number,
        length: fieldOf(info, "length") as number,
      };
      found.set(name, [...(found.get(name) ?? []), place]);
    }
    return found;
  }

  /** The metadata of one tensor of two parts of one size, which lie where torch has put two of a tensor. */
  async function lying(name: string, starts: readonly number[][], dimensions?: number): Promise<string> {
    const copy = join(folder(), "lying");
    cpSync(join(golden, "model"), copy, { recursive: true });
    const source = await dcpSource(copy);
    const { boxes, dtype, shape } = source.tensors.find((tensor) => tensor.name === name)!;
    const size = boxes[0]!.length;
    const places = twoParts().get(name)!.slice(0, 2);
    const whole = dimensions === undefined ? [2 * size[0]!, ...shape.slice(1)] : Array(dimensions).fill(1);
    const value = record("metadata.Metadata", {
      state_dict_metadata: new Map([
        [
          name,
          record("metadata.TensorStorageMetadata", {
            properties: {
              global: `${part}.metadata.TensorProperties`,
              state: [{ global: `torch.${dtype}` }],
            },
            size: whole,
            chunks: starts.map((start) =>
              record("metadata.ChunkStorageMetadata", { offsets: start, sizes: [...size] }),
            ),
          }),
        ],
      ]),
      storage_data: new Map(
        starts.map((start, at): [Value, Value] => [
          record("metadata.MetadataIndex", { fqn: name, offset: start }),
          record("filesystem._StorageInfo", {
            relative_path: places[at]!.file,
            offset: places[at]!.offset,
            length: places[at]!.length,
          }),
        ]),
      ),
    });
    writeFileSync(join(copy, ".metadata"), pickleOf(...encode(value)));
    return copy;
  }

  it("of parts that overlap, or of a tensor of many dimensions, are refused", async () => {
    const { tensors } = await dcpSource(join(golden, "model"));
    const { name, boxes } = tensors.find(
      ({ shape, boxes: [one, two] }) =>
        shape.length === 2 &&
        one !== undefined &&
        String(one.length) === String(two?.length) &&
        one.length[0]! > 1,
    )!;
    const rows = boxes[0]!.length[0]!;
    // What is true of it, first: the other two are refused for the lie.
    const { tensors: read } = await dcpSource(
      await lying(name, [
        [0, 0],
        [rows, 0],
      ]),
    );
    expect(read[0]!.boxes).toHaveLength(2);
    for (const [what, starts, dimensions] of [
      [
        "overlap",
        [
          [0, 0],
          [1, 0],
        ],
        undefined,
      ],
      [
        "dimensions",
        [
          [0, 0],
          [rows, 0],
        ],
        1000,
      ],
    ] as const) {
      await expect(
        dcpSource(
          await lying(
            name,
            starts.map((each) => [...each]),
            dimensions,
          ),
        ),
      ).rejects.toMatchObject({
        code: "TB_CHECKPOINT",
        message: expect.stringContaining(what),
      });
    }
  });
});

describe("a damaged checkpoint", () => {
  it("is refused or read, whatever bytes of it are others, and never anything else", async () => {
    for (const name of [".metadata", "__1_0.distcp"]) {
      const original = readFileSync(join(golden, "model", name));
      await fc.assert(
        fc.asyncProperty(
          fc.nat(original.length - 1),
          fc.integer({ min: 1, max: 255 }),
          async (at, change) => {
            const copy = join(folder(), "copy");
            cpSync(join(golden, "model"), copy, { recursive: true });
            const bytes = Buffer.from(original);
            bytes[at]! ^= change;
            writeFileSync(join(copy, name), bytes);
            const code = await dcpSource(copy).then(
              () => "read",
              (error: { code?: string }) => error.code,
            );
            expect(["read", "TB_CHECKPOINT", "TB_FILE"]).toContain(code);
          },
        ),
        { seed: 3, numRuns: 300 },
      );
    }
  });
});
