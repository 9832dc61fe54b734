import { closeSync, ftruncateSync, openSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { AgentLink } from "../../src/bus/client/agent-link.ts";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import { ClientConnection } from "../../src/bus/client/connection.ts";
import type { RegionMessage } from "../../src/bus/queue/commands.ts";
import { encodeTensorTable, type TensorRecord } from "../../src/bus/queue/tensor-table.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { type BusWorld, pathsOf, startWorld } from "./kit/bus-world.ts";
import { forkFixture, kill, messageOf } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });
const sides = [
  ["a", "b"],
  ["b", "a"],
] as const;

let world: BusWorld;
let honest: readonly BatchHandler[];
let tensors: readonly SharedTensor<"float32">[];
const connections: ClientConnection[] = [];

/** Two honest clients, whose batch must go on working whatever the third one does. */
beforeEach(async () => {
  world = await startWorld(2);
  tensors = [SharedTensor.allocate([1024], "float32"), SharedTensor.allocate([1024], "float32")];
  await Promise.all(world.clients.map((client, rank) => initSide(client, rank, "honest")));
  honest = await Promise.all(
    world.clients.map((client, rank) => client.registerTensors("honest", [[tensors[rank]!, "honest"]])),
  );
});
afterEach(async () => {
  for (const connection of connections.splice(0)) await connection.close();
  await world.close();
});

function initSide(client: BusWorld["clients"][number], rank: number, pairName: string): Promise<void> {
  const [localName, remoteName] = sides[rank]!;
  return client.initPair({ pairName, localName, remoteName, expectedWorldSize: 1 });
}

async function expectHonestRound(value: number): Promise<void> {
  tensors[0]!.data.fill(value);
  const semaphores = await Promise.all([honest[0]!.transfer("send"), honest[1]!.transfer("recv")]);
  await Promise.all(semaphores.map((semaphore) => semaphore.wait()));
  expect(tensors[1]!.data.every((each) => each === value)).toBe(true);
}

/** A client that says to rank 0's agent what it likes: its commands pass no check of ours but their form. */
async function liar(): Promise<AgentLink> {
  const connection = await ClientConnection.open({ agentRank: 0, ...pathsOf(world.folder, 0) }, {});
  connections.push(connection);
  const link = await connection.link();
  const pair = { pair: "w", local: "a", remote: "b", worldSize: 1 };
  const met = initSide(world.clients[1]!, 1, "w");
  await Promise.all([met, link.submit("InitPair", "w", pair).outcome]);
  return link;
}

const record: TensorRecord = {
  pair: "w",
  dtype: "float32",
  shape: [16n],
  strides: [1n],
  region: 0,
  offset: 0n,
};

function claim(link: AgentLink, region: RegionMessage, changed: Partial<TensorRecord> = {}) {
  const body = { batch: "b", regions: [region], tensors: encodeTensorTable([{ ...record, ...changed }]) };
  return link.submit("RegisterTensors", "b", body, { timeoutMs: 2000 }).outcome;
}

function regionOf({ storage }: SharedTensor): Extract<RegionMessage, { kind: "shared" }> {
  const { memory } = storage;
  return { kind: "shared", fd: memory.descriptor!, bytes: memory.bytes, ...storage.identity() };
}

describe("a client that lies", () => {
  it("about its memory is refused, and harms nobody", async () => {
    const link = await liar();
    const region = regionOf(SharedTensor.allocate([2 ** 24], "uint8"));
    await expect(claim(link, { ...region, bytes: region.bytes + 4096n })).rejects.toEqual(code("TB_SEAL"));
    await expect(claim(link, { ...region, inode: region.inode + 1n })).rejects.toEqual(code("TB_REGION"));
    await expect(claim(link, { ...region, device: region.device + 1n })).rejects.toEqual(code("TB_REGION"));
    await expectHonestRound(1);
    // Another's object, and what is no memory at all.
    const other = regionOf(tensors[0]!);
    await expect(claim(link, { ...region, fd: other.fd })).rejects.toEqual(code("TB_REGION"));
    const file = openSync("/etc/hostname", "r");
    await expect(claim(link, { ...region, fd: file })).rejects.toEqual(code("TB_TENSOR_MISSING"));
    closeSync(file);
    await expect(claim(link, { ...region, fd: file })).rejects.toEqual(code("TB_TENSOR_MISSING"));
    await expect(claim(link, { kind: "host", key: 2n ** 40n, bytes: 64n })).rejects.toEqual(
      code("TB_TENSOR_MISSING"),
    );
    const handle = new Uint8Array(64);
    await expect(claim(link, { kind: "cuda", handle, device: "GPU-1", bytes: 64n })).rejects.toEqual(
      code("TB_UNSUPPORTED"),
    );
    await expectHonestRound(2);
  });

  it("about where a tensor lies is refused before anything is touched", async () => {
    const link = await liar();
    const region = regionOf(SharedTensor.allocate([2 ** 24], "uint8"));
    for (const changed of [
      { offset: region.bytes - 32n },
      { offset: 2n ** 64n - 64n },
      { shape: [2n ** 62n] },
      { strides: [2n ** 40n] },
      { strides: [-1n] },
      { shape: [2n ** 32n, 2n ** 32n], strides: [2n ** 32n, 1n] },
    ]) {
      await expect(claim(link, region, changed)).rejects.toMatchObject({ name: "TensorBusError" });
    }
    await expectHonestRound(3);
  });

  it("cannot take back memory that an agent uses", async () => {
    tensors = [SharedTensor.allocate([2 ** 24], "float32"), SharedTensor.allocate([2 ** 24], "float32")];
    await Promise.all(honest.map((handler) => handler.close()));
    honest = await Promise.all(
      world.clients.map((client, rank) => client.registerTensors("honest", [[tensors[rank]!, "honest"]])),
    );
    const { memory } = tensors[0]!.storage;
    expect(() => ftruncateSync(memory.descriptor!, 0)).toThrow(expect.objectContaining({ code: "EPERM" }));
    memory.close();
    await expectHonestRound(4);
  });

  it("by batches and commands that are not its own changes nothing", async () => {
    const link = await liar();
    const transfer = link.submit("Transfer", "honest", { batch: "honest", direction: "send" });
    await expect(transfer.outcome).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
    const cancel = link.submit("Cancel", "other", { command: 1n });
    expect(await cancel.outcome).toEqual({ found: false });
    const cleanup = link.submit("CleanupBatch", "honest", { batch: "honest", instance: 1n });
    expect(await cleanup.outcome).toEqual({ freed: false });
    await expectHonestRound(5);
  });
});

describe("a client that is killed in the middle of a round", () => {
  it("ends it with a typed error on the other side, and nothing else", async () => {
    const child = forkFixture("killed-sender", { paths: pathsOf(world.folder, 0), rank: 0 });
    const posted = messageOf(child, (message) => message === "posted");
    await initSide(world.clients[1]!, 1, "w");
    const target = SharedTensor.allocate([2 ** 20], "float32");
    const receiver = await world.clients[1]!.registerTensors("b", [[target, "w"]]);
    await receiver.transfer("recv", { blocking: true });
    expect(target.data.every((value) => value === 1)).toBe(true);
    await posted;
    await kill(child);
    const lost = receiver.transfer("recv", { blocking: true, timeoutMs: 5000 });
    await expect(lost).rejects.toMatchObject({ name: "TensorBusError" });
    await expectHonestRound(6);
  });
});
