/** GPU memory of clients, as their agent opens it, on the double of libcuda (test/doubles/cuda). */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { afterAll, beforeAll, expect, test } from "vitest";
import { AgentMemory } from "../../src/bus/agent-memory.ts";
import type { RegionMessage } from "../../src/bus/commands.ts";
import { hostRegions } from "../../src/bus/host-regions.ts";
import { ownIdentity } from "../../src/bus/identity.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { memory } from "../../transports/memory/index.ts";
import { doubleDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { bundleChild } from "../transport/children.ts";

useCudaDouble();

const client = { id: 1n, wake: "", ...ownIdentity() };
const bytes = 8192;
let bundle: Awaited<ReturnType<typeof bundleChild>>;
let owner: ChildProcess;
let region: Extract<RegionMessage, { kind: "cuda" }>;

beforeAll(async () => {
  bundle = await bundleChild("owner");
  owner = spawn(process.execPath, [bundle.file, doubleDevice, String(bytes)]);
  const [line] = (await once(owner.stdout!, "data")) as [Buffer];
  const { handle } = JSON.parse(String(line)) as { handle: string };
  region = {
    kind: "cuda",
    handle: Uint8Array.from(Buffer.from(handle, "hex")),
    device: doubleDevice,
    bytes: BigInt(bytes),
  };
});
afterAll(() => {
  owner.kill("SIGKILL");
  bundle.remove();
});

test("a handle is opened once, registered, exported as its owner's, and closed with its last user", async () => {
  await using session = await cudaIpc({ device: doubleDevice }).open({
    rank: 0,
    world: 1,
    store: memoryStores()(),
  });
  const held = new AgentMemory(hostRegions);
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
  const held = new AgentMemory(hostRegions);
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
