/** GPU memory that ends before its batch does, and an agent without a GPU, on the doubles of native/test/doubles. */
import { readFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { missingDevice } from "../doubles/cuda/index.ts";
import { deviceOf, useDoubles } from "../transport/kit/nccl-doubles.ts";
import { AgentWorld, failureOf, initPair, joinPair, type Side, tensor } from "./kit/agent-kit.ts";
import {
  allocated,
  engine,
  mapped,
  ownedTensor,
  post,
  register,
  round,
  startAgent,
  startAgents,
  trainer,
} from "./kit/gpu-kit.ts";
import { kill } from "./kit/processes.ts";

// A GPU that has failed stays failed for this process: each test that has one fail takes three of its own.
useDoubles(15);
const devicesFrom = (first: number) => [first, first + 1, first + 2].map(deviceOf);

const first: Side = { name: "trainer", ranks: [0], placements: ["R"] };
const last: Side = { name: "engine", ranks: [2], placements: ["R"] };

function outcomesOf(ends: Awaited<ReturnType<typeof post>>): Promise<string[]> {
  return Promise.all(
    ends.map((end) =>
      end.wait().then(
        () => "done",
        ({ code }) => code,
      ),
    ),
  );
}

/** An agent whose GPU has failed cannot let go of memory there, and says so; all else is closed. */
async function closeFailed(world: AgentWorld, rank: number): Promise<void> {
  await expect(world.agents[rank]!.close({ drainMs: 0 })).rejects.toMatchObject({ code: "TB_CUDA" });
  delete world.agents[rank];
}

describe("memory that its owner frees while it is registered", () => {
  test.each([
    ["cuda-ipc", {}, 0],
    ["nccl", { force: "nccl" }, 3],
  ] as const)("by %s: TB_CUDA there from now on, and the other agents go on", async (_, options, ordinal) => {
    const devices = devicesFrom(ordinal);
    await using world = await startAgents(devices, options);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
    const handlers = await register(clients, owned, "model");
    await round(handlers, owned, 3);
    expect(await owned[1]!.owner.ask("free")).toEqual({ freed: true });
    const [sent, freed, other] = await outcomesOf(await post(handlers));
    expect({ sent, freed }).toEqual({ sent: "TB_CUDA", freed: "TB_CUDA" });
    // Its call may have come when the batch had ended already.
    expect(other).toMatch(/done|TB_CUDA|TB_PEER_LOST/);
    const { tensor } = await ownedTensor(devices[1]!);
    expect(await failureOf(clients[1]!.registerTensors("next", [[tensor, "weights"]]))).toMatchObject({
      code: "TB_CUDA",
      message: expect.stringContaining("ILLEGAL_ADDRESS"),
    });
    const two = [owned[0]!, owned[2]!];
    const others = (await joinPair(world, [first, last], "others")).flat();
    await round(await register(others, two, "others", "others"), two, 8);
    await closeFailed(world, 1);
  });

  test("the memory of the host that its client had registered is given back all the same", async () => {
    const shared = () => readFileSync("/proc/self/maps", "utf8").split("memfd:tensorbus").length - 1;
    const devices = devicesFrom(6);
    await using world = await startAgents(devices);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
    const host = clients.map(() => tensor([64]));
    const before = shared();
    const handlers = await register(clients, owned, "model");
    await Promise.all(
      clients.map((client, rank) => client.registerTensors("host", [[host[rank]!, "weights"]])),
    );
    expect(shared()).toBe(before + 3);
    await owned[1]!.owner.ask("free");
    expect((await outcomesOf(await post(handlers)))[1]).toBe("TB_CUDA");
    await Promise.all(clients.map((client) => client.close()));
    await expect.poll(shared).toBe(before);
    await closeFailed(world, 1);
  });
});

describe("an owner that is killed after it has registered", () => {
  afterEach(() => {
    delete process.env["CUDA_DOUBLE_DELAY_US"];
  });

  const devices = devicesFrom(9);
  const held = () => ({ mapped: mapped(), bytes: [9, 10, 11].map((device) => Number(allocated(device))) });

  test.each([
    ["before a round", "cuda-ipc", {}],
    ["in a round", "cuda-ipc", {}],
    ["before a round", "nccl", { force: "nccl" }],
    ["in a round", "nccl", { force: "nccl" }],
  ] as const)("%s by %s: it ends, nothing stays mapped, and the next is served", async (when, _, options) => {
    // Each step of the round takes a while.
    if (when === "in a round") process.env["CUDA_DOUBLE_DELAY_US"] = "100000";
    await using world = await startAgents(devices, options);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
    const before = held();
    const handlers = await register(clients, owned, "model");
    expect(mapped()).toBe(before.mapped + 3);
    if (when === "before a round") await kill(owned[1]!.owner.process);
    const ends = await post(handlers);
    if (when === "in a round") {
      const happened = (what: string) => world.events[1]!.some(({ kind }) => kind === what);
      await expect.poll(() => happened("roundStarted"), { interval: 1 }).toBe(true);
      owned[1]!.owner.process.kill("SIGKILL");
      expect(happened("roundCompleted")).toBe(false);
    }
    for (const outcome of await outcomesOf(ends)) expect(outcome).toMatch(/done|TB_CUDA/);
    await Promise.all(handlers.map((handler) => handler.close()));
    await expect.poll(held).toEqual(before);
    owned[1] = await ownedTensor(devices[1]!);
    await round(await register(clients, owned, "next"), owned, 5);
  });
});

test("an agent of a GPU that is not there is TB_DEVICE, others go on; it comes with another", async () => {
  const devices = devicesFrom(12);
  await using world = new AgentWorld();
  for (const rank of [0, 1]) await startAgent(world, rank, devices[rank]!);
  const side: Side = { ...engine, ranks: [1] };
  const clients = (await joinPair(world, [trainer, side], "two")).flat();
  const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
  const handlers = await register(clients, owned.slice(0, 2), "two", "two");
  await expect(startAgent(world, 2, missingDevice)).rejects.toMatchObject({
    code: "TB_DEVICE",
    message: expect.stringContaining(missingDevice),
  });
  await round(handlers, owned.slice(0, 2), 4);
  await startAgent(world, 2, devices[2]!);
  clients.push(await world.client(2));
  await initPair([clients.slice(0, 1), clients.slice(1)], [trainer, engine]);
  await round(await register(clients, owned, "model"), owned, 6);
});
