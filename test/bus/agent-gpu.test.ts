/** Rounds between tensors in GPU memory of other processes, by agents, on the doubles of libcuda and libnccl (test/doubles). */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { select } from "../../src/transport/selection.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { nccl } from "../../transports/nccl/index.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { bundleChild } from "../transport/children.ts";
import { deviceOf, useDoubles } from "../transport/nccl-doubles.ts";
import { AgentWorld, failureOf, joinPair, type Side } from "./agent-kit.ts";

useDoubles(3);

const bytes = 3 * 4096;
let bundle: Awaited<ReturnType<typeof bundleChild>>;
beforeAll(async () => {
  bundle = await bundleChild("owner");
});
afterAll(() => bundle.remove());

/** A process that owns memory of a GPU. */
class Owner {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(device: string) {
    this.process = spawn(process.execPath, [bundle.file, device, String(bytes)], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#lines = createInterface({ input: this.process.stdout! })[Symbol.asyncIterator]();
  }

  async says(): Promise<Record<string, unknown>> {
    return JSON.parse((await this.#lines.next()).value as string);
  }

  ask(line: string): Promise<Record<string, unknown>> {
    this.process.stdin!.write(`${line}\n`);
    return this.says();
  }
}

const owners: Owner[] = [];
afterEach(() => {
  for (const { process } of owners.splice(0)) process.kill("SIGKILL");
});

/** A tensor of bytes in memory that another process owns. */
async function ownedTensor(device: string) {
  const owner = new Owner(device);
  owners.push(owner);
  const { handle } = (await owner.says()) as { handle: string };
  const data = { kind: "cuda", device, handle: Buffer.from(handle, "hex"), bytes } as const;
  return { owner, tensor: { data, shape: [3, 4096], dtype: "uint8" } as const };
}

async function startAgents(
  devices: readonly string[],
  options: Parameters<typeof select>[1] = {},
): Promise<AgentWorld> {
  const world = new AgentWorld();
  for (const [rank, device] of devices.entries()) {
    await world.startAgent(rank, {
      transport: select([tcp({}), cudaIpc({ device }), nccl({ device })], options),
    });
  }
  return world;
}

const trainer: Side = { name: "trainer", ranks: [0], placements: ["R"] };
const engine: Side = { name: "engine", ranks: [1, 2], placements: ["R"] };

describe("tensors in GPU memory", () => {
  test.each([
    ["cuda-ipc", {}],
    ["nccl", { force: "nccl" }],
  ])("go by %s, round after round", async (name, options) => {
    const devices = [0, 1, 2].map(deviceOf);
    await using world = await startAgents(devices, options);
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
      expect(results.map(({ bytesReceived }) => bytesReceived)).toEqual([0n, BigInt(bytes), BigInt(bytes)]);
      for (const { owner } of owned) expect(await owner.ask(String(value))).toEqual({ filled: true });
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
