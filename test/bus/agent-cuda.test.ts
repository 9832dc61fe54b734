/** GPU memory of clients, as their agent opens it, on the double of libcuda (native/test/doubles/cuda). */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { afterAll, beforeAll, expect, test } from "vitest";
import { AgentMemory } from "../../src/bus/batch/memory.ts";
import { openEventPort } from "../../src/bus/process/event-port.ts";
import { ownIdentity } from "../../src/bus/process/identity.ts";
import type { RegionMessage } from "../../src/bus/queue/commands.ts";
import { hostRegions } from "../../src/bus/tensor/host-regions.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { memory } from "../../transports/memory/index.ts";
import { doubleDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { bundleChild } from "../transport/kit/children.ts";
import { AgentWorld, joinPair, type Side } from "./kit/agent-kit.ts";

useCudaDouble();

const sides: [Side, Side] = [
  { name: "trainer", ranks: [0], placements: ["R"] },
  { name: "engine", ranks: [1], placements: ["R"] },
];
const port = openEventPort();
const onFault = (error: unknown) => {
  throw error;
};
const client = { id: 1n, wake: "", ...ownIdentity() };
const bytes = 8192;
let owner: ChildProcess;
let region: Extract<RegionMessage, { kind: "cuda" }>;

beforeAll(async () => {
  owner = spawn(process.execPath, [bundleChild("owner"), doubleDevice, String(bytes)]);
  const [line] = (await once(owner.stdout!, "data")) as [Buffer];
  const { handle } = JSON.parse(String(line)) as { handle: string };
  region = {
    kind: "cuda",
    handle: Uint8Array.from(Buffer.from(handle, "hex")),
    device: doubleDevice,
    bytes: BigInt(bytes),
  };
});
afterAll(async () => {
  owner.kill("SIGKILL");
  await port.close();
});

test("a handle is opened once, registered, exported as its owner's, and closed with its last user", async () => {
  await using session = await cudaIpc({ device: doubleDevice }).open({
    rank: 0,
    world: 1,
    store: memoryStores()(),
  });
  const held = new AgentMemory(hostRegions, { port, onFault });
  const first = held.hold(client, [region], session);
  const second = held.hold(client, [region], session);
  const [opened] = first.memories;
  expect(second.memories).toEqual([opened]);
  expect({ size: held.size, kind: opened!.kind, bytes: opened!.bytes }).toEqual({
    size: 1,
    kind: "cuda",
    bytes: BigInt(bytes),
  });
  first.release();
  expect(held.size).toBe(1);
  second.release();
  expect(held.size).toBe(0);
  expect(() => opened!.address).toThrow(expect.objectContaining({ code: "TB_CLOSED" }));
});

test("more than the allocation has, a handle of nothing, an agent without a GPU: refused, and nothing stays", async () => {
  await using session = await cudaIpc({ device: doubleDevice }).open({
    rank: 0,
    world: 1,
    store: memoryStores()(),
  });
  await using plain = await memory().open({ rank: 0, world: 1, store: memoryStores()() });
  const held = new AgentMemory(hostRegions, { port, onFault });
  const hold =
    (change: object, by = session) =>
    () =>
      held.hold(client, [{ ...region, ...change }], by);
  expect(hold({ bytes: BigInt(bytes + 1) })).toThrow(expect.objectContaining({ code: "TB_REGION" }));
  expect(hold({ handle: new Uint8Array(64) })).toThrow(expect.objectContaining({ code: "TB_CUDA" }));
  expect(hold({}, plain as unknown as typeof session)).toThrow(
    expect.objectContaining({ code: "TB_UNSUPPORTED", message: expect.stringContaining("--device") }),
  );
  expect(held.size).toBe(0);
});

test("memory of the agent's own process is given by its address, and moved", async () => {
  await using world = new AgentWorld();
  for (const rank of [0, 1]) {
    await world.startAgent(rank, { transport: cudaIpc({ device: doubleDevice }) });
  }
  const clients = (await joinPair(world, sides)).flat();
  const memories = [0, 1].map(() => DeviceMemory.allocate(doubleDevice, bytes));
  const handlers = await Promise.all(
    memories.map(({ address }, rank) => {
      // Its second half.
      const data = { kind: "cuda", device: doubleDevice, address, bytes } as const;
      const tensor = { data, shape: [bytes / 2], dtype: "uint8", byteOffset: bytes / 2 } as const;
      return clients[rank]!.registerTensors("own", [[tensor, "weights"]]);
    }),
  );
  const [source, target] = memories.map((memory) => ({ memory, held: new Uint8Array(bytes) }));
  target!.memory.write(target!.held);
  for (const value of [3, 250]) {
    source!.memory.write(source!.held.fill(value));
    const ends = await Promise.all(
      handlers.map((handler, rank) => handler.transfer(rank === 0 ? "send" : "recv")),
    );
    await Promise.all(ends.map((end) => end.wait()));
    target!.memory.read(target!.held);
    const expected = (index: number) => (index < bytes / 2 ? 0 : value);
    expect(target!.held.every((byte, index) => byte === expected(index))).toBe(true);
  }
  // The same memory in another batch is the same region.
  const data = { kind: "cuda", device: doubleDevice, address: source!.memory.address, bytes } as const;
  const tensor = { data, shape: [bytes / 2], dtype: "uint8" } as const;
  const others = await Promise.all(clients.map((each) => each.registerTensors("two", [[tensor, "weights"]])));
  for (const handler of [...handlers, ...others]) await handler.close();
  // The caller's own stays its own.
  for (const { memory } of [source!, target!]) memory.read(new Uint8Array(bytes));
  for (const memory of memories) memory.close();
});

test("a handle of the agent's own process is refused with what to give instead", async () => {
  await using session = await cudaIpc({ device: doubleDevice }).open({
    rank: 0,
    world: 1,
    store: memoryStores()(),
  });
  const own = DeviceMemory.allocate(doubleDevice, bytes);
  const { handle } = own.export();
  const held = new AgentMemory(hostRegions, { port, onFault });
  expect(() => held.hold(client, [{ ...region, handle: Uint8Array.from(handle) }], session)).toThrow(
    expect.objectContaining({ code: "TB_CUDA", message: expect.stringContaining("takes the address") }),
  );
  expect(held.size).toBe(0);
  own.close();
});
