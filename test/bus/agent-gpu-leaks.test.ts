/** What rounds of GPU tensors leave behind; alone in its process, so that all there is, is its agents'. */
import { readdirSync } from "node:fs";
import { expect, test } from "vitest";
import { deviceOf, useDoubles } from "../transport/kit/nccl-doubles.ts";
import { joinPair } from "./kit/agent-kit.ts";
import {
  allocated,
  engine,
  mapped,
  ownedTensor,
  post,
  register,
  round,
  startAgents,
  trainer,
} from "./kit/gpu-kit.ts";

useDoubles(3);

const ordinals = [0, 1, 2];

function held() {
  return {
    bytes: ordinals.map((ordinal) => Number(allocated(ordinal))),
    mapped: mapped(),
    files: readdirSync("/proc/self/fd").length,
  };
}

test.each([
  ["cuda-ipc", {}],
  ["nccl", { force: "nccl" }],
])("a thousand rounds by %s take no more than the first hundred, and nothing after", async (_, options) => {
  const devices = ordinals.map(deviceOf);
  await using world = await startAgents(devices, options);
  const clients = (await joinPair(world, [trainer, engine])).flat();
  const owned = await Promise.all(devices.map((device) => ownedTensor(device)));
  const batch = async (id: string, rounds: number) => {
    const handlers = await register(clients, owned, id);
    const run = async (count: number) => {
      for (let turn = 0; turn < count; turn++) {
        await Promise.all((await post(handlers)).map((end) => end.wait()));
      }
    };
    await run(rounds / 10);
    const within = held();
    expect(within.mapped).toBe(3);
    await run((rounds * 9) / 10);
    await expect.poll(held).toEqual(within);
    await round(handlers, owned, 11);
    await Promise.all(handlers.map((handler) => handler.close()));
    await expect.poll(() => held().mapped).toBe(0);
  };
  // Connections and events are kept for the batches that follow.
  await batch("first", 10);
  const before = held();
  await batch("second", 1000);
  await expect.poll(held).toEqual(before);
});
