/** Processes that own memory of a GPU, and agents for it, on the doubles of libcuda and libnccl (test/doubles). */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { select } from "../../src/transport/selection.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { nccl } from "../../transports/nccl/index.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { bundleChild } from "../transport/children.ts";
import { AgentWorld } from "./agent-kit.ts";

export const ownedBytes = 3 * 4096;

/** A process that owns memory of a GPU: `test/gpu/owner.ts`. */
export class Owner {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(file: string, device: string, environment: Readonly<Record<string, string>>) {
    this.process = spawn(process.execPath, [file, device, String(ownedBytes)], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, ...environment },
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

export interface OwnedOptions {
  /** Its tensor carries the owner's events. */
  readonly events?: boolean;
  /** Before everything that its GPU does. */
  readonly delayUs?: number;
}

/** The owners of a test file. */
export class Owners {
  readonly #bundle: Awaited<ReturnType<typeof bundleChild>>;
  readonly #running: Owner[] = [];

  private constructor(bundle: Awaited<ReturnType<typeof bundleChild>>) {
    this.#bundle = bundle;
  }

  static async build(): Promise<Owners> {
    return new Owners(await bundleChild("owner"));
  }

  /** A tensor of bytes in memory that another process owns. */
  async tensor(device: string, { events = false, delayUs = 0 }: OwnedOptions = {}) {
    const owner = new Owner(this.#bundle.file, device, { CUDA_DOUBLE_DELAY_US: String(delayUs) });
    this.#running.push(owner);
    const said = (await owner.says()) as Record<"handle" | "ready" | "free", string>;
    const handle = (name: keyof typeof said) => Uint8Array.from(Buffer.from(said[name], "hex"));
    const data = {
      kind: "cuda",
      device,
      handle: handle("handle"),
      bytes: ownedBytes,
      ...(events ? { ready: handle("ready"), free: handle("free") } : {}),
    } as const;
    return { owner, tensor: { data, shape: [3, 4096], dtype: "uint8" } as const };
  }

  /** Kills all that there are. */
  end(): void {
    for (const { process } of this.#running.splice(0)) process.kill("SIGKILL");
  }

  remove(): void {
    this.end();
    this.#bundle.remove();
  }
}

/** An agent for each device, rank by rank. */
export async function startGpuAgents(
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
