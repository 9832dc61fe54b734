import { sha256 } from "@noble/hashes/sha2.js";
import { describe, expect, it } from "vitest";
import {
  DeviceMesh,
  formatVersion,
  type HostLinkInput,
  Partial,
  Plan,
  type PlanInput,
  plannerVersion,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
  toJSON,
} from "../../src/plan/index.ts";
import { Writer } from "../../src/plan/input/bytes.ts";

const input: PlanInput = {
  pairs: {
    weights: {
      source: {
        mesh: new DeviceMesh([2, 3], { ranks: [5, 3, 1, 0, 2, 4] }),
        placements: [StridedShard(-1, 3), Shard(1)],
        stridedShard: "order",
      },
      target: { mesh: new DeviceMesh([4], { ranks: [6, 7, 8, 9] }), placements: [Shard(0)] },
    },
    "größe 🙂": {
      source: { mesh: new DeviceMesh([2, 2]), placements: [Partial("avg"), Partial("sum")] },
      target: { mesh: new DeviceMesh([3], { ranks: [9, 1, 20] }), placements: [Replicate()] },
    },
  },
  tensors: [
    { name: "layers.0.up", pair: "weights", shape: [12, 24], dtype: "float32", targetDtype: "bfloat16" },
    {
      name: "layers.0.down",
      pair: "weights",
      shape: [12, 24],
      dtype: "float32",
      target: { select: { dim: 0, index: 5, of: 8 } },
    },
    {
      name: "layers.1.down",
      pair: "weights",
      shape: [12, 24],
      dtype: "float32",
      target: { select: { dim: 0, index: 0, of: 8 } },
    },
    {
      name: "layers.1.down",
      pair: "weights",
      shape: [12, 25],
      dtype: "float32",
      source: { stridedShard: "split" },
    },
    { name: "🙂🙃", pair: "größe 🙂", shape: [], dtype: "float64" },
    { name: "🙂🙂", pair: "größe 🙂", shape: [0, 5], dtype: "float64" },
    { name: "", pair: "größe 🙂", shape: [2 ** 33, 5], dtype: "float16" },
  ],
  bucketBytes: 65536,
  bucketsInFlight: 3,
  peersInFlight: 7,
  strategy: "direct",
  topology: { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 3 },
  maxChunks: 1_000_000,
};

describe("canonical bytes", () => {
  it("hold the input, in defaults and all", async () => {
    const plan = await planTransfer(input);
    const loaded = Plan.load(plan.bytes);
    expect(loaded.digest).toBe(plan.digest);
    expect(loaded.bytes).toEqual(plan.bytes);
    const { pairs, ...rest } = loaded.input;
    expect(rest).toEqual({ ...rest, ...input, pairs: undefined, tensors: rest.tensors });
    expect(rest.tensors).toEqual(input.tensors);
    expect(pairs["weights"]!.source).toEqual(input.pairs["weights"]!.source);
  });

  it("can be verified after loading", async () => {
    const small = { ...input, tensors: input.tensors.slice(0, 6) };
    const plan = await planTransfer(small);
    const loaded = Plan.load(plan.bytes);
    loaded.verify();
    expect(toJSON([...loaded.chunks()])).toEqual(toJSON([...plan.chunks()]));
    expect(loaded.program(0).bytes).toEqual(plan.program(0).bytes);
  });

  it("do not depend on the order of pairs, nor on how a mesh was made", async () => {
    const turned = Object.fromEntries(Object.entries(input.pairs).toReversed());
    expect((await planTransfer({ ...input, pairs: turned })).digest).toBe((await planTransfer(input)).digest);
  });

  it("differ in everything that matters", async () => {
    const digests = new Set<string>();
    const variants: readonly PlanInput[] = [
      input,
      { ...input, bucketBytes: 65537 },
      { ...input, bucketsInFlight: 1 },
      { ...input, peersInFlight: 1 },
      { ...input, tensors: input.tensors.toReversed() },
      { ...input, tensors: input.tensors.slice(1) },
      { ...input, tensors: input.tensors.map((tensor) => ({ ...tensor, name: `${tensor.name}x` })) },
      { ...input, topology: { ...input.topology!, latencyUs: 4 } },
    ];
    for (const variant of variants) digests.add((await planTransfer(variant)).digest);
    expect(digests.size).toBe(variants.length);
  });

  it("are refused when any byte is damaged, cut off or added", async () => {
    const { bytes } = await planTransfer(input);
    const refused = (damaged: Uint8Array) =>
      expect(() => Plan.load(damaged)).toThrowError(expect.objectContaining({ code: "TB_PLAN_FORMAT" }));
    for (let at = 0; at < bytes.length; at++) {
      const damaged = bytes.slice();
      damaged[at]! ^= 1 << (at % 8);
      refused(damaged);
      refused(bytes.subarray(0, at));
    }
    refused(Uint8Array.of(...bytes, 0));
  });

  it("are refused when what they say is wrong, even with a right check sum", async () => {
    const { bytes } = await planTransfer({ ...input, topology: undefined as never });
    let refusals = 0;
    for (let at = 8; at < bytes.length - 16; at++) {
      const forged = bytes.slice();
      forged[at] = 0xff;
      forged.set(sha256(forged.subarray(0, -16)).subarray(0, 16), forged.length - 16);
      try {
        // What still loads is another plan of other bytes, or a name with another letter.
        expect(Plan.load(forged).bytes).toEqual(forged);
      } catch (error) {
        expect(error).toMatchObject({ code: "TB_PLAN_FORMAT" });
        refusals++;
      }
    }
    expect(refusals).toBeGreaterThan(bytes.length / 2);
  });

  it("hold no names that grow beyond all bounds by what they share with the one before", async () => {
    // Each name is all of the last one, twice: 40 of them would be longer than any memory.
    const forged = (names: number, head: (last: number) => number, tail: (last: number) => number) => {
      const writer = new Writer(256);
      writer.u32(0x4c504254);
      writer.u16(1);
      writer.u16(plannerVersion);
      for (const option of [65_536, 2, 4, 1000, 0, 0]) writer.number(option);
      writer.list([0], () => writer.list([1], (size) => writer.number(size)));
      writer.signed(0);
      writer.list(["pair"], (name) => {
        writer.text(name);
        for (let side = 0; side < 2; side += 1) for (const zero of [0, 0, 0]) writer.number(zero);
      });
      writer.list([0], () => {
        for (const byte of [0, 0, 0, 0, 0, 0, 0, 0]) writer.u8(byte);
      });
      writer.number(names);
      let length = 0;
      for (let index = 0; index < names; index += 1) {
        writer.number(head(length));
        writer.number(tail(length));
        writer.text("x");
        writer.number(0);
        length = head(length) + tail(length) + 1;
      }
      writer.raw(sha256(writer.bytes()).subarray(0, 16));
      return writer.bytes();
    };
    const refused = (bytes: Uint8Array, why: RegExp) =>
      expect(() => Plan.load(bytes)).toThrowError(
        expect.objectContaining({ code: "TB_PLAN_FORMAT", message: expect.stringMatching(why) }),
      );
    const all = (last: number) => last;
    refused(forged(40, all, all), /shares more/);
    refused(
      forged(5000, all, () => 0),
      /at most 4096/,
    );
    refused(
      forged(
        100_000,
        (last) => Math.min(last, 4095),
        () => 0,
      ),
      /characters together/,
    );
    const tensors = (length: number) =>
      input.tensors.map((tensor) => ({ ...tensor, name: "x".repeat(length) }));
    await expect(planTransfer({ ...input, tensors: tensors(4096) })).resolves.toBeDefined();
    await expect(planTransfer({ ...input, tensors: tensors(4097) })).rejects.toMatchObject({
      code: "TB_PLAN_INPUT",
    });
  });

  it("hold speeds of links in any order as one, in a format that says so only where there are some", async () => {
    const topology = { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 5 };
    const links = [
      { hosts: [2, 0], MBps: 50 },
      { hosts: [1, 1], MBps: 700 },
      { hosts: [0, 1], MBps: 60 },
    ] as const;
    const of = (own: readonly HostLinkInput[] | undefined) =>
      planTransfer({ ...input, topology: own === undefined ? topology : { ...topology, links: own } });
    const [plan, other] = [await of(links), await of(links.toReversed())];
    expect(other.digest).toBe(plan.digest);
    expect(plan.input.topology).toEqual({
      ...topology,
      links: [
        { hosts: [0, 1], MBps: 60 },
        { hosts: [0, 2], MBps: 50 },
        { hosts: [1, 1], MBps: 700 },
      ],
    });
    expect(Plan.load(plan.bytes).digest).toBe(plan.digest);
    expect(plan.bytes[4]).toBe(2);
    const [none, empty] = [await of(undefined), await of([])];
    expect([none.bytes[4], empty.digest]).toEqual([1, none.digest]);
    expect(none.digest).not.toBe(plan.digest);
  });

  it("of the planner before stages overlapped are read, and mean what they meant", async () => {
    // Two tensors that go directly and two in stripes, in turn.
    const saved = Buffer.from(
      "VEJQTAEAAgCAIAIEgICAAgIBBADoB2QFAgEEAAAAAAEECAAAAAEBcAAAAQABAAACAAEBAkBAAAAAAQIAAQECQGAAAAAABAAAAncwAAABAAExAQEAATIAAQEAATMBAAIBAgABAgIAAoiKZXWIsToJvBRCRjoH0IM=",
      "base64",
    );
    const plan = Plan.load(new Uint8Array(saved));
    expect([plan.digest, plan.bytes[6]]).toEqual([
      "0c028a63749eb42b13bbde8e1f54cefb2f7e4d932e4c712ab118a65c2a75f287",
      2,
    ]);
    const between = (one: Plan) =>
      [...one.chunks()].filter(({ srcRank, dstRank }) => srcRank === 0 && dstRank === 4);
    expect(between(plan).map(({ tensor }) => tensor)).toEqual([0, 1, 3]);
    plan.verify({ whole: true });
    // What is handed on comes first by now.
    const anew = await planTransfer(plan.input);
    expect([anew.bytes[6], between(anew).map(({ tensor }) => tensor)]).toEqual([plannerVersion, [1, 3, 0]]);
    anew.verify({ whole: true });
    expect(Plan.load(anew.bytes).digest).toBe(anew.digest);
    const forged = anew.bytes.slice();
    forged[6] = 2;
    forged.set(sha256(forged.subarray(0, -16)).subarray(0, 16), forged.length - 16);
    const before = Plan.load(forged);
    expect([before.digest, before.bytes]).toEqual([plan.digest, plan.bytes]);
    // A plan that the older planner answers alike is of its version, so that its digest stays.
    const striped = {
      ...plan.input,
      tensors: plan.input.tensors.filter(({ target }) => target === undefined),
    };
    expect((await planTransfer(striped)).bytes[6]).toBe(2);
  });

  it("name both versions when they are of another one", async () => {
    const { bytes } = await planTransfer(input);
    const other = bytes.slice();
    other[4] = formatVersion + 1;
    const refused = (found: { format: number; planner: number }) =>
      expect(() => Plan.load(other)).toThrowError(
        expect.objectContaining({
          code: "TB_PLAN_FORMAT",
          details: { found, supported: { format: formatVersion, planner: plannerVersion } },
        }),
      );
    refused({ format: formatVersion + 1, planner: bytes[6]! });
    other[4] = bytes[4]!;
    for (const planner of [1, plannerVersion + 1]) {
      other[6] = planner;
      refused({ format: bytes[4]!, planner });
    }
  });
});
