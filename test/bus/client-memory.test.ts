import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { MessageChannel } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { LayoutList } from "../../src/bus/client/layout.ts";
import { type ClientTensor, describeTensor, RegionList } from "../../src/bus/client/memory.ts";
import { hostRegions } from "../../src/bus/tensor/host-regions.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import type { ScriptedMessage } from "./children/scripted-agent.ts";
import { exitOf, forkFixture, freshPaths, messageOf } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });
const describe1 = (tensor: ClientTensor, regions = new RegionList(true)) =>
  describeTensor(tensor, "p", regions, 0, new LayoutList(0));

describe("a tensor's description", () => {
  it("finds the memory of any array on a shared tensor", () => {
    const tensor = SharedTensor.allocate([4, 4], "float32");
    const regions = new RegionList(false);
    const whole = describe1(tensor, regions);
    const offset = BigInt(tensor.storageOffset);
    expect(whole).toEqual({
      pair: "p",
      dtype: "float32",
      shape: [4n, 4n],
      strides: [4n, 1n],
      region: 0,
      offset,
    });
    const { data } = tensor;
    const own = new Float32Array(data.buffer, data.byteOffset + 16, 8);
    expect(describe1(own, regions)).toMatchObject({ shape: [8n], region: 0, offset: offset + 16n });
    const halves = new Uint16Array(data.buffer, data.byteOffset, 4);
    expect(describe1({ data: halves, dtype: "bfloat16" }, regions)).toMatchObject({
      dtype: "bfloat16",
      shape: [4n],
    });
    expect(describe1({ data, shape: [2, 2], strides: [8, 1], byteOffset: 4 }, regions)).toMatchObject({
      shape: [2n, 2n],
      strides: [8n, 1n],
      offset: offset + 4n,
    });
    expect(regions.messages).toHaveLength(1);
    const [region] = regions.messages;
    expect(region).toMatchObject({ kind: "shared", ...tensor.storage.identity() });
    describe1(SharedTensor.allocate([2 ** 24], "uint8"), regions);
    expect(regions.messages).toHaveLength(2);
  });

  it("refuses what does not lie in its memory, or is no tensor", () => {
    const data = SharedTensor.allocate([16], "float32").data;
    expect(() => describe1({ data, shape: [17] })).toThrow(code("TB_REGION"));
    expect(() => describe1({ data, shape: [4], strides: [6] })).toThrow(code("TB_REGION"));
    expect(() => describe1({ data, shape: [2, 2], strides: [-1, 1] })).toThrow(code("TB_STRIDES"));
    expect(() => describe1({ data, shape: [2, 2], strides: [1] })).toThrow(code("TB_STRIDES"));
    expect(() => describe1({ data, shape: [2], byteOffset: 2 })).toThrow(TypeError);
    expect(() => describe1({ data, shape: [1.5] })).toThrow(TypeError);
    expect(() => describe1({ data, dtype: "float4" as "int8" })).toThrow(code("TB_DTYPE"));
    expect(() => describe1({ data: SharedTensor.allocate([2], "int8"), shape: [1] })).toThrow(TypeError);
    expect(() => describe1(new Uint16Array(2))).toThrow(/dtype/);
    expect(() => describe1([1, 2] as unknown as ClientTensor)).toThrow(TypeError);
    expect(() => describe1({ data: {} } as unknown as ClientTensor)).toThrow(TypeError);
  });

  it("takes memory of a device as data", () => {
    const data = { kind: "cuda", handle: new Uint8Array(64).fill(7), device: "GPU-1", bytes: 4096 } as const;
    const regions = new RegionList(false);
    const half = { data, dtype: "bfloat16", shape: [4, 8] } as const;
    expect(describe1({ ...half, byteOffset: 64 }, regions)).toMatchObject({ offset: 64n, region: 0 });
    describe1(half, regions);
    expect(regions.messages).toEqual([{ kind: "cuda", handle: data.handle, device: "GPU-1", bytes: 4096n }]);
    expect(() => describe1({ data, dtype: "bfloat16" })).toThrow(TypeError);
    expect(() => describe1({ ...half, shape: [2049] })).toThrow(code("TB_REGION"));
  });

  it("takes the events of device memory, and its address where the agent lives in this process", () => {
    const memory = { kind: "cuda", device: `GPU-${"0".repeat(32)}`, bytes: 4096 } as const;
    const handle = new Uint8Array(64).fill(7);
    const ready = new Uint8Array(64).fill(8);
    const shaped = { dtype: "bfloat16", shape: [4, 8] } as const;
    const regions = new RegionList(false);
    describe1({ ...shaped, data: { ...memory, handle, ready } }, regions);
    describe1({ ...shaped, data: { ...memory, handle } }, regions);
    expect(regions.messages).toMatchObject([
      { kind: "cuda", handle, ready },
      { kind: "cuda", handle },
    ]);
    for (const name of ["handle", "ready", "free"]) {
      const data = { ...memory, handle, [name]: new Uint8Array(63) };
      expect(() => describe1({ ...shaped, data })).toThrow(TypeError);
    }
    const own = { ...shaped, data: { ...memory, address: 2n ** 40n } };
    expect(() => describe1(own, regions)).toThrow(code("TB_UNSUPPORTED"));
    const embedded = new RegionList(true);
    expect(describe1({ ...own, byteOffset: 32 }, embedded)).toMatchObject({ offset: 32n, region: 0 });
    expect(embedded.messages).toMatchObject([{ kind: "host", bytes: 4096n }]);
    expect(() => describe1({ ...shaped, data: { ...own.data, handle } }, embedded)).toThrow(TypeError);
    embedded.hold().release();
  });

  it("gives tensors without elements any region", () => {
    const regions = new RegionList(false);
    expect(describe1(new Float32Array(0), regions)).toMatchObject({ shape: [0n], region: 0, offset: 0n });
    expect(describe1(SharedTensor.allocate([3, 0], "int8").transpose(0, 1), regions)).toMatchObject({
      region: 0,
    });
    expect(regions.messages).toHaveLength(1);
  });
});

describe("plain memory", () => {
  it("is for an agent of the same process", () => {
    expect(() => describe1(new Float32Array(4), new RegionList(false))).toThrow(code("TB_UNSUPPORTED"));
    const regions = new RegionList(true);
    const plain = Float32Array.of(1, 2, 3, 4);
    expect(describe1(plain.subarray(1), regions)).toMatchObject({ shape: [3n], offset: 4n, region: 0 });
    const [region] = regions.messages;
    expect(region).toMatchObject({ kind: "host", bytes: 16n });
    const { key } = region as { key: bigint };
    expect(hostRegions.get(key).bytes).toBe(16n);
    const again = new RegionList(true);
    describe1(plain, again);
    // One buffer is one region, however many batches hold it.
    expect(again.messages).toEqual(regions.messages);
    regions.hold().release();
    expect(hostRegions.get(key).bytes).toBe(16n);
    const hold = again.hold();
    hold.release();
    hold.release();
    expect(() => hostRegions.get(key)).toThrow(code("TB_TENSOR_MISSING"));
  });

  it("must keep its place, and does while a batch holds it", () => {
    const resizable = new (ArrayBuffer as unknown as new (bytes: number, options: object) => ArrayBuffer)(
      16,
      {
        maxByteLength: 32,
      },
    );
    expect(() => describe1(new Float32Array(resizable))).toThrow(TypeError);
    const detached = new Float32Array(4);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    expect(() => describe1(detached)).toThrow(code("TB_REGION"));
    const plain = Float32Array.of(1, 2, 3, 4);
    const regions = new RegionList(true);
    describe1(plain, regions);
    const hold = regions.hold();
    const { port1, port2 } = new MessageChannel();
    try {
      port1.postMessage(plain, [plain.buffer]);
    } catch (error) {
      // Newer versions refuse; older ones copy.
      expect(error).toMatchObject({ name: "DataCloneError" });
    }
    port1.close();
    port2.close();
    expect([...plain]).toEqual([1, 2, 3, 4]);
    const { transfer } = plain.buffer as unknown as { transfer: () => ArrayBuffer };
    expect(() => transfer.call(plain.buffer)).toThrow(TypeError);
    hold.check();
    hold.release();
  });
});

interface Scenario {
  readonly result: Record<string, unknown>;
}

async function runScenario(scenario: string) {
  const paths = freshPaths();
  const agent = forkFixture("scripted-agent", paths);
  const gone = messageOf<ScriptedMessage>(agent, (message) => "gone" in message);
  gone.catch(() => {});
  await messageOf<ScriptedMessage>(agent, (message) => "ready" in message);
  const child = forkFixture("forgetful-client", { ...paths, scenario }, ["--expose-gc"]);
  const { result } = await messageOf<Scenario>(child);
  return { result, gone, child };
}

describe("what is forgotten", () => {
  it("stays as long as an array on it, and then goes", async () => {
    const { result } = await runScenario("tensors");
    const one = { descriptors: 1, mappings: 1 };
    expect(result).toEqual({ kept: one, stillKept: one, value: 0 });
    const collected = await runScenario("collected");
    expect(collected.result).toEqual({
      before: { descriptors: 3, mappings: 3 },
      after: { descriptors: 0, mappings: 0 },
    });
  });

  it("stays as long as a batch holds it", async () => {
    const { result } = await runScenario("batch");
    expect(result).toEqual({
      registered: { descriptors: 1, mappings: 1 },
      closed: { descriptors: 0, mappings: 0 },
      bytesReceived: 4n,
    });
  });

  it("as a handler, leaves its batch to the client", async () => {
    const { result, gone } = await runScenario("handler");
    expect(result).toEqual({ signal: true });
    expect(await gone).toMatchObject({ batches: 1 });
  });

  it("as a client, is closed with all that it made", async () => {
    const { result, gone, child } = await runScenario("client");
    expect(result).toEqual({ gone: true, error: "TB_CLOSED" });
    expect(await gone).toMatchObject({ batches: 1 });
    expect(await exitOf(child)).toEqual({ code: 0, signal: null });
  });

  it("as a client with a call under way, stays until that has ended", async () => {
    const { result } = await runScenario("pending");
    expect(result).toEqual({ code: "TB_TIMEOUT", message: "the agent's own verdict" });
  });

  it("by a process that ends, is freed by the agent", async () => {
    const { result, gone, child } = await runScenario("exit");
    expect(await exitOf(child)).toEqual({ code: 0, signal: null });
    expect(await gone).toMatchObject({ batches: 1 });
    const file = `/dev/shm/sem.${(result["wake"] as string).slice(1)}`;
    while (existsSync(file)) await sleep(5);
  });
});
