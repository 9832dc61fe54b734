/** Processes that own memory of GPUs, and agents that move it, on the doubles of native/test/doubles. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import koffi from "koffi";
import { expect } from "vitest";
import type { BatchHandler } from "../../../src/bus/client/batch-handler.ts";
import type { TensorBusClient } from "../../../src/bus/client/client.ts";
import { select } from "../../../src/transport/selection.ts";
import { cudaIpc } from "../../../transports/cuda-ipc/index.ts";
import { nccl } from "../../../transports/nccl/index.ts";
import { tcp } from "../../../transports/tcp/index.ts";
import { doubleLibrary } from "../../doubles/cuda/index.ts";
import { afterEachTest } from "../../kit/endings.ts";
import { bundleChild } from "../../transport/kit/children.ts";
import { AgentWorld, type Side } from "./agent-kit.ts";
import { kill } from "./processes.ts";

export const bytes = 3 * 4096;
export const trainer: Side = { name: "trainer", ranks: [0], placements: ["R"] };
export const engine: Side = { name: "engine", ranks: [1, 2], placements: ["R"] };

const program = bundleChild("owner");

/** A process that owns memory of a GPU. */
class Owner {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(device: string, delayUs: number) {
    this.process = spawn(process.execPath, [program, device, String(bytes)], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, CUDA_DOUBLE_DELAY_US: String(delayUs) },
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
afterEachTest(async () => {
  await Promise.all(owners.splice(0).map(({ process }) => kill(process)));
});

export interface OwnedOptions {
  /** Its tensor carries the owner's events. */
  readonly events?: boolean;
  /** Before everything that its GPU does. */
  readonly delayUs?: number;
}

/** A tensor of bytes in memory that another process owns. */
export async function ownedTensor(device: string, { events = false, delayUs = 0 }: OwnedOptions = {}) {
  const owner = new Owner(device, delayUs);
  owners.push(owner);
  const said = (await owner.says()) as Record<"handle" | "ready" | "free", string>;
  const handle = (name: keyof typeof said) => Uint8Array.from(Buffer.from(said[name], "hex"));
  const data = {
    kind: "cuda",
    device,
    handle: handle("handle"),
    bytes,
    ...(events ? { ready: handle("ready"), free: handle("free") } : {}),
  } as const;
  return { owner, tensor: { data, shape: [3, 4096], dtype: "uint8" } as const };
}

type OwnedTensor = Awaited<ReturnType<typeof ownedTensor>>;

export async function startAgents(
  devices: readonly string[],
  options: Parameters<typeof select>[1] = {},
): Promise<AgentWorld> {
  const world = new AgentWorld();
  for (const [rank, device] of devices.entries()) await startAgent(world, rank, device, options);
  return world;
}

export function startAgent(
  world: AgentWorld,
  rank: number,
  device: string,
  options: Parameters<typeof select>[1] = {},
) {
  return world.startAgent(rank, {
    transport: select([tcp({}), cudaIpc({ device }), nccl({ device })], options),
  });
}

/** A batch of one tensor on each client's rank. */
export function register(
  clients: readonly TensorBusClient[],
  owned: readonly OwnedTensor[],
  batch: string,
  pair = "weights",
): Promise<BatchHandler[]> {
  return Promise.all(
    owned.map(({ tensor }, at) =>
      clients[at]!.registerTensors(batch, [[tensor, pair]], { timeoutMs: 10_000 }),
    ),
  );
}

/** The first of these sends, the others receive: each call's semaphore. */
export function post(handlers: readonly BatchHandler[]) {
  return Promise.all(handlers.map((handler, at) => handler.transfer(at === 0 ? "send" : "recv")));
}

/** A whole round: what each call gave. */
export async function run(handlers: readonly BatchHandler[]) {
  return Promise.all((await post(handlers)).map((end) => end.wait()));
}

/** A round of that value, which all owners see. */
export async function round(handlers: readonly BatchHandler[], owned: readonly OwnedTensor[], value: number) {
  await owned[0]!.owner.ask(`set ${value}`);
  const results = await run(handlers);
  for (const { owner } of owned) expect(await owner.ask(String(value))).toEqual({ filled: true });
  return results;
}

const double = koffi.load(doubleLibrary);
/** Mappings of owners' memory that this process has open. */
export const mapped = double.func("cuda_double_mapped", "uint32_t", []) as () => number;
/** Bytes of a device that this process has allocated. */
export const allocated = double.func("cuda_double_allocated", "uint64_t", ["int"]) as (
  device: number,
) => number | bigint;
