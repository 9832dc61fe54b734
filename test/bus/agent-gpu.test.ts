/** Rounds between tensors in GPU memory of other processes, by agents, on the doubles of libcuda and libnccl (test/doubles). */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { deviceOf, useDoubles } from "../transport/nccl-doubles.ts";
import { failureOf, joinPair, type Side } from "./agent-kit.ts";
import { Owners, ownedBytes, startGpuAgents } from "./gpu-kit.ts";

useDoubles(3);

let owners: Owners;
beforeAll(async () => {
  owners = await Owners.build();
});
afterEach(() => owners.end());
afterAll(() => owners.remove());

const ownedTensor = (device: string) => owners.tensor(device);

const trainer: Side = { name: "trainer", ranks: [0], placements: ["R"] };
const engine: Side = { name: "engine", ranks: [1, 2], placements: ["R"] };

describe("tensors in GPU memory", () => {
  test.each([
    ["cuda-ipc", {}],
    ["nccl", { force: "nccl" }],
  ])("go by %s, round after round", async (name, options) => {
    const devices = [0, 1, 2].map(deviceOf);
    await using world = await startGpuAgents(devices, options);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const owned = await Promise.all(devices.map(ownedTensor));
    const handlers = await Promise.all(
      owned.map(({ tensor }, rank) => clients[rank]!.registerTensors("model", [[tensor, "weights"]])),
    );
    for (const value of [7, 200, 31]) {
      await owned[0]!.owner.ask(`set ${value}`);
      const ends = await Promise.all(
        handlers.map((handler, rank) => handler.transfer(rank === 0 ? "send" : "recv")),
      );
      const results = await Promise.all(ends.map((end) => end.wait()));
      expect(results.map(({ bytesReceived }) => bytesReceived)).toEqual([
        0n,
        BigInt(ownedBytes),
        BigInt(ownedBytes),
      ]);
      for (const { owner } of owned) expect(await owner.ask(String(value))).toEqual({ filled: true });
    }
    const registered = world.events[1]!.find(({ kind }) => kind === "batchRegistered");
    expect(registered).toMatchObject({ transports: { [name]: [0] } });
  });

  test("of two agents on one GPU that need NCCL: TB_DEVICE_SHARED when the pair meets, with pair, ranks and GPU", async () => {
    await using world = await startGpuAgents([deviceOf(0), deviceOf(0), deviceOf(1)], { force: "nccl" });
    const failed = await failureOf(joinPair(world, [trainer, engine]));
    expect(failed).toMatchObject({
      code: "TB_DEVICE_SHARED",
      details: { pair: "weights", ranks: [0, 1], device: deviceOf(0) },
    });
    expect(failed.message).toContain("pair weights");
    // The agents go on: those on GPUs of their own meet.
    const others = [
      { name: "trainer", ranks: [0], placements: ["R"] },
      { name: "engine", ranks: [2], placements: ["R"] },
    ] as const satisfies [Side, Side];
    await joinPair(world, others, "other");
  });

  test("of an owner that is gone: the round fails, and the agents serve the next", async () => {
    const devices = [0, 1, 2].map(deviceOf);
    await using world = await startGpuAgents(devices);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const gone = await ownedTensor(devices[0]!);
    gone.owner.process.kill("SIGKILL");
    await new Promise((resolve) => gone.owner.process.once("exit", resolve));
    const owned = await Promise.all(devices.map(ownedTensor));
    const register = (first: (typeof owned)[number], batch: string) =>
      Promise.all(
        [first, owned[1]!, owned[2]!].map(({ tensor }, rank) =>
          clients[rank]!.registerTensors(batch, [[tensor, "weights"]], { timeoutMs: 5000 }),
        ),
      );
    expect((await failureOf(register(gone, "first"))).code).toBe("TB_CUDA");
    const handlers = await register(owned[0]!, "second");
    await owned[0]!.owner.ask("set 9");
    const ends = await Promise.all(
      handlers.map((handler, rank) => handler.transfer(rank === 0 ? "send" : "recv")),
    );
    await Promise.all(ends.map((end) => end.wait()));
    for (const { owner } of owned) expect(await owner.ask("9")).toEqual({ filled: true });
  });
});
