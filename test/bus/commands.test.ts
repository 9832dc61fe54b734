import fc from "fast-check";
import { Packr } from "msgpackr";
import { describe, expect, it } from "vitest";
import { momentIn, ownIdentity, randomClientId } from "../../src/bus/process/identity.ts";
import { privateName } from "../../src/bus/process/names.ts";
import { generateSemaphoreName } from "../../src/bus/process/semaphore.ts";
import {
  batchKey,
  type Command,
  checkCommand,
  encodeCommand,
  normalizeBatchId,
  pack,
  readHeader,
  unpack,
} from "../../src/bus/queue/commands.ts";
import { decodeTensorTable, encodeTensorTable, type TensorRecord } from "../../src/bus/queue/tensor-table.ts";
import { TensorBusError } from "../../src/errors.ts";

fc.configureGlobal({ seed: 20_261 });

const decodeCommand = (bytes: Uint8Array) => checkCommand(unpack(bytes));

const client = { ...ownIdentity(), id: randomClientId(), wake: privateName() };

function header<T extends Command["type"]>(type: T) {
  return {
    type,
    id: 2n ** 53n + 1n,
    timestamp: 1.5,
    semaphore: generateSemaphoreName(type, "context"),
    client,
    deadline: momentIn(1000),
    acknowledged: [1n, 2n ** 64n - 1n],
  };
}

const tensor: TensorRecord = {
  pair: "weights",
  dtype: "bfloat16",
  shape: [3n, 4n],
  strides: [1n, 3n],
  region: 0,
  offset: 16n,
};

const commands: readonly Command[] = [
  { ...header("InitPair"), pair: "p", local: "a", remote: "b", worldSize: 8 },
  {
    ...header("InitPair"),
    pair: "p",
    local: "a",
    remote: "b",
    worldSize: 4,
    layout: {
      mesh: { shape: [2, 2], ranks: [3, 1, 2, 0] },
      placements: ["S(0)", "R"],
      stridedShard: "order",
    },
  },
  {
    ...header("RegisterTensors"),
    batch: "b",
    bucketBytes: 4096,
    regions: [
      { kind: "shared", fd: 7, device: 2n ** 63n, inode: 5n, bytes: 2n ** 40n },
      { kind: "cuda", handle: Buffer.alloc(64, 1), device: "GPU-1", bytes: 1n },
      { kind: "host", key: 1n, bytes: 0n },
    ],
    tensors: encodeTensorTable([tensor, { ...tensor, name: "w", region: 2, globalShape: [6n, 2n ** 60n] }]),
  },
  { ...header("Transfer"), batch: 2 ** 24 + 1, direction: "recv" },
  { ...header("QueryStatus"), batch: -(2n ** 63n) },
  { ...header("CleanupBatch"), batch: 7, instance: 2n ** 64n - 1n },
];

function refusal(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof TensorBusError) return error.code;
    throw error;
  }
  return "accepted";
}

describe("a command", () => {
  it.each(
    commands.map((command) => [command.type, command] as const),
  )("%s comes out as it went in", (_, command) => {
    expect(decodeCommand(encodeCommand(command))).toEqual(command);
  });

  it("is a plain MessagePack map that any reader reads", () => {
    const read = new Packr({ useRecords: false }).unpack(encodeCommand(commands[3]!));
    expect(read).toMatchObject({ type: "Transfer", batch: 16777217, client: { pid: process.pid } });
  });

  it.each([
    ["an unknown type", { type: "Format" }],
    ["a type of the prototype", { type: "toString" }],
    ["an unknown member", { extra: 1 }],
    [
      "another user's semaphore",
      { client: { ...client, wake: `/tensorbus-${client.uid + 1}-${"0".repeat(32)}` } },
    ],
    ["a path as semaphore", { client: { ...client, wake: "/tensorbus-0-../../../etc/passwd" } }],
    ["no client", { client: undefined }],
    ["an id as text", { id: "1" }],
    ["a negative id", { id: -1n }],
    ["a fraction as batch", { batch: 1.5 }],
    ["a number that is not exact as batch", { batch: 2 ** 53 + 2 }],
    ["an empty batch", { batch: "" }],
    ["a long batch", { batch: "x".repeat(5000) }],
    ["a batch beyond 64 bits", { batch: 2n ** 64n }],
  ])("with %s is refused at both ends", (_, change) => {
    const command = { ...commands[4]!, ...change } as unknown as Command;
    expect(refusal(() => encodeCommand(command))).toBe("TB_COMMAND");
    const beyond = "batch" in change && change.batch === 2n ** 64n;
    if (!beyond) expect(refusal(() => decodeCommand(pack(command)))).toBe("TB_COMMAND");
  });

  it("whose body is malformed still says whose it is", () => {
    const message = unpack(pack({ ...commands[4]!, batch: null }));
    expect(readHeader(message)).toMatchObject({ type: "QueryStatus", id: 2n ** 53n + 1n, client });
    expect(readHeader({})).toBeUndefined();
  });

  it("is never anything but a command or TB_COMMAND, whatever the bytes", () => {
    const good = encodeCommand(commands[2]!);
    const damaged = fc
      .tuple(fc.nat(good.length - 1), fc.nat(255), fc.nat(good.length))
      .map(([at, byte, length]) => {
        const copy = Buffer.from(good.subarray(0, length));
        if (at < copy.length) copy[at] = byte;
        return copy as Uint8Array;
      });
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), damaged), (bytes) => {
        expect(["accepted", "TB_COMMAND"]).toContain(refusal(() => decodeCommand(bytes)));
      }),
      { seed: 7, numRuns: 2000 },
    );
  });
});

describe("an id of a batch", () => {
  it("is exact beyond 2^24 and 2^53, and one for one value", () => {
    const ids = [
      0,
      1,
      2 ** 24,
      2 ** 24 + 1,
      2 ** 32,
      2 ** 53 - 1,
      2n ** 53n,
      2n ** 53n + 1n,
      2n ** 64n - 1n,
      "1",
      "s:1",
    ];
    expect(new Set(ids.map(batchKey)).size).toBe(ids.length);
    for (const id of ids) {
      const command = { ...header("QueryStatus"), batch: id };
      expect(decodeCommand(encodeCommand(command))).toEqual(command);
    }
    expect(normalizeBatchId(5n)).toBe(5);
    expect(normalizeBatchId(2n ** 53n)).toBe(2n ** 53n);
    expect(refusal(() => normalizeBatchId(1.5))).toBe("TB_COMMAND");
    expect(refusal(() => normalizeBatchId(2n ** 65n))).toBe("TB_COMMAND");
  });
});

describe("a table of tensors", () => {
  const size = fc.bigInt({ min: 0n, max: 2n ** 62n });
  const record: fc.Arbitrary<TensorRecord> = fc
    .record({
      name: fc.option(fc.string({ minLength: 1, maxLength: 20 }), { nil: undefined }),
      pair: fc.constantFrom("a", "b", "ü"),
      dtype: fc.constantFrom("float64" as const, "bool" as const, "float8_e5m2" as const),
      dims: fc.array(fc.tuple(size, fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })), { maxLength: 5 }),
      region: fc.nat(9),
      offset: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      globalShape: fc.option(fc.array(size, { maxLength: 4 }), { nil: undefined }),
      layout: fc.option(fc.nat(4), { nil: undefined }),
    })
    .map(({ dims, name, globalShape, layout, ...rest }) => ({
      ...rest,
      shape: dims.map(([size]) => size),
      strides: dims.map(([, stride]) => stride),
      ...(name === undefined ? {} : { name }),
      ...(globalShape === undefined ? {} : { globalShape }),
      ...(layout === undefined ? {} : { layout }),
    }));

  it("comes out as it went in", () => {
    fc.assert(
      fc.property(fc.array(record, { minLength: 1, maxLength: 20 }), (records) => {
        const table = encodeTensorTable(records);
        expect(decodeTensorTable(unpack(pack(table)) as typeof table, 10, 5)).toEqual(records);
      }),
      { seed: 3, numRuns: 200 },
    );
  });

  it("that does not fit is refused", () => {
    const table = encodeTensorTable([tensor, tensor]);
    const bad = [
      { ...table, count: 3 },
      { ...table, dims: Buffer.from([2, 3]) },
      { ...table, shape: table.shape.subarray(8) },
      { ...table, pair: Buffer.from([0, 0, 1, 0]) },
      { ...table, dtype: Buffer.from([0, 255]) },
      { ...table, names: ["one"] },
      { ...table, layout: Buffer.from([0, 0]) },
      { ...table, layout: Buffer.from([0, 0, 2, 0]) },
      { ...table, shape: Buffer.alloc(32, 0xff) },
    ];
    for (const each of bad) expect(refusal(() => decodeTensorTable(each, 1, 2))).toBe("TB_COMMAND");
    expect(refusal(() => decodeTensorTable(table, 0))).toBe("TB_COMMAND");
    expect(refusal(() => encodeTensorTable([]))).toBe("TB_COMMAND");
    expect(refusal(() => encodeTensorTable([{ ...tensor, strides: [1n] }]))).toBe("TB_COMMAND");
  });

  it("of 70,000 named tensors is a message of a few megabytes", () => {
    const records = Array.from({ length: 70_000 }, (_, i) => ({
      ...tensor,
      name: `model.layers.${i >> 7}.mlp.experts.${i & 127}.gate_proj.weight`,
      offset: BigInt(i) * 4096n,
    }));
    const region = { kind: "shared", fd: 3, device: 1n, inode: 1n, bytes: 1n } as const;
    const command = {
      ...header("RegisterTensors"),
      batch: 1,
      regions: [region],
      tensors: encodeTensorTable(records),
    };
    const bytes = encodeCommand(command);
    expect(bytes.length).toBeLessThan(8 * 2 ** 20);
    const decoded = decodeCommand(bytes);
    expect(decoded.type).toBe("RegisterTensors");
    if (decoded.type !== "RegisterTensors") return;
    expect(decodeTensorTable(decoded.tensors, 1).at(-1)).toEqual(records.at(-1));
  });
});
