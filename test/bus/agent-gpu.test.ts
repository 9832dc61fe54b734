/** Rounds between tensors in GPU memory of other processes, by agents, on the doubles of libcuda and libnccl (native/test/doubles). */
import { describe, expect, test } from "vitest";
import { deviceOf, useDoubles } from "../transport/kit/nccl-doubles.ts";
import { failureOf, joinPair, type Side } from "./kit/agent-kit.ts";
import { bytes, engine, ownedTensor, register, round, startAgents, trainer } from "./kit/gpu-kit.ts";
import { kill } from "./kit/processes.ts";

useDoubles(3);

describe("tensors in GPU memory", () => {
  test.each([
    ["cuda-ipc", {}],
    ["nccl", { force: "nccl" }],
  ])("go by %s, round after round", async (name, options) => {
    const devices = [0, 1, 2].map(deviceOf);
    await using world = await startAgents(devices, options);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
    const handlers = await register(clients, owned, "model");
    for (const value of [7, 200, 31]) {
      const results = await round(handlers, owned, value);
      expect(results.map(({ bytesReceived }) => bytesReceived)).toEqual([0n, BigInt(bytes), BigInt(bytes)]);
    }
    const registered = world.events[1]!.find(({ kind }) => kind === "batchRegistered");
    expect(registered).toMatchObject({ transports: { [name]: [0] } });
  });

  test("of two agents on one GPU that need NCCL: TB_DEVICE_SHARED when the pair meets, with pair, ranks and GPU", async () => {
    await using world = await startAgents([deviceOf(0), deviceOf(0), deviceOf(1)], { force: "nccl" });
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
    await using world = await startAgents(devices);
    const clients = (await joinPair(world, [trainer, engine])).flat();
    const gone = await ownedTensor(devices[0]!);
    await kill(gone.owner.process);
    const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
    expect((await failureOf(register(clients, [gone, ...owned.slice(1)], "first"))).code).toBe("TB_CUDA");
    await round(await register(clients, owned, "second"), owned, 9);
  });
});
