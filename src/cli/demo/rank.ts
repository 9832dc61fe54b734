/** One rank of the demo's jobs: a client of its agent, whose tensors lie in shared memory. It does what its supervisor says. */
import { readFile } from "node:fs/promises";
import type { BatchHandler } from "../../bus/client/batch-handler.ts";
import { bootstrapClient } from "../../bus/client/bootstrap.ts";
import type { TensorBusClient } from "../../bus/client/client.ts";
import { SharedTensor } from "../../bus/tensor/shared-tensor.ts";
import { TensorBusError } from "../../errors.ts";
import { itemSize } from "../../layout/index.ts";
import { openSafetensors, type SafetensorsCheckpoint } from "../../model/safetensors.ts";
import { Plan, type PlanInput } from "../../plan/index.ts";
import { type LocalTensor, localTensors, slabs } from "../reshard/local-tensors.ts";
import { failureOf } from "../reshard/messages.ts";
import { expectedSlab, requireEqual } from "../reshard/verify.ts";
import type { DemoJob, DemoMessage, DemoOrder, DemoStep, StepReport } from "./messages.ts";
import { train } from "./training.ts";

const batchId = "weights";
const slabBytes = 32 * 2 ** 20;
const progressEveryMs = 50;
const names = { source: "trainer", target: "engine" } as const;

/** Runs the steps that the supervisor orders over the IPC channel; settles when the process may end. */
export async function runDemoRank(): Promise<void> {
  if (process.send === undefined) {
    throw new TensorBusError("TB_SPEC", "this command is started by `tensorbus demo`, not by hand");
  }
  await new Promise<void>((resolve) => {
    let work = Promise.resolve();
    let rank: DemoRank | undefined;
    const orders = async (order: DemoOrder) => {
      if (order.kind === "job") {
        rank = new DemoRank(order);
        return;
      }
      if (order.kind === "end") {
        await rank?.close();
        resolve();
        return;
      }
      await say({ kind: "done", report: await rank!.run(order.step, order.round) });
    };
    process.on("message", (order: DemoOrder) => {
      work = work
        .then(() => orders(order))
        .catch(async (error: unknown) => {
          await say({ kind: "failed", failure: failureOf(error, rank?.job.rank ?? -1) });
          process.exitCode = error instanceof TensorBusError ? error.exitCode : 4;
          resolve();
        });
    });
    process.once("disconnect", () => {
      // The supervisor was killed: nobody else would end this rank's agent.
      if (rank !== undefined) killQuietly(rank.job.agentPid);
      process.exit(4);
    });
  });
  process.removeAllListeners("disconnect");
  if (process.connected) process.disconnect();
}

class DemoRank {
  readonly job: DemoJob;
  #client: TensorBusClient | undefined;
  #checkpoint: SafetensorsCheckpoint | undefined;
  #batch: BatchHandler | undefined;
  #shards: readonly { readonly local: LocalTensor; readonly tensor: SharedTensor }[] = [];

  constructor(job: DemoJob) {
    this.job = job;
  }

  async run(step: DemoStep, round: number): Promise<StepReport> {
    const began = performance.now();
    if (step === "move") return this.#move();
    const bytes = await this.#workOf(step, round);
    return { bytes, seconds: (performance.now() - began) / 1000 };
  }

  async close(): Promise<void> {
    await this.#client?.close();
    await this.#checkpoint?.close();
  }

  #workOf(step: Exclude<DemoStep, "move">, round: number): Promise<number> {
    if (step === "join") return this.#join();
    return step === "train" ? this.#train(round) : this.#verify(round);
  }

  /** Connects, registers this rank's side of every pair, and its tensors. */
  async #join(): Promise<number> {
    const { job } = this;
    const { input } = Plan.load(await readFile(job.planPath));
    this.#checkpoint = await openSafetensors(job.checkpoint);
    const { client } = await bootstrapClient({ connectionTimeoutMs: job.timeoutMs });
    this.#client = client;
    this.#shards = localTensors(input, job.rank, job.role).map((local) => ({
      local,
      tensor: SharedTensor.allocate(local.holding.localShape, local.dtype),
    }));
    await this.#initPairs(client, input);
    this.#batch = await client.registerTensors(
      batchId,
      this.#shards.map(({ local, tensor }) => [
        { data: tensor, name: local.tensor.name, globalShape: local.tensor.shape },
        local.tensor.pair,
      ]),
      { timeoutMs: job.timeoutMs },
    );
    return this.#totalBytes;
  }

  async #initPairs(client: TensorBusClient, { pairs }: PlanInput): Promise<void> {
    const { role, timeoutMs } = this.job;
    const calls = Object.entries(pairs).map(([pairName, pair]) => {
      const { mesh, placements } = pair[role];
      return client.initPair({
        pairName,
        localName: names[role],
        remoteName: names[role === "source" ? "target" : "source"],
        expectedWorldSize: mesh.size,
        deviceMesh: mesh,
        placements,
        timeoutMs,
      });
    });
    await Promise.all(calls);
  }

  /** One training step: new values, written to where the agent reads them. */
  async #train(round: number): Promise<number> {
    const told = this.#progress();
    for (const { local, tensor } of this.#shards) {
      for (const slab of slabs(local, slabBytes)) {
        const bytes = bytesOf(tensor, slab.at, slab.bytes);
        for (const { box, at } of slab.boxes) {
          await this.#checkpoint!.readBox(local.tensor.name, box, bytes, { shape: slab.shape, offsets: at });
        }
        train(bytes, local.dtype, round);
        told(slab.bytes);
      }
    }
    return this.#totalBytes;
  }

  async #move(): Promise<StepReport> {
    const { role, timeoutMs } = this.job;
    const subscription = this.#batch!.progress$.subscribe(({ bytesDone, bytesTotal }) => {
      void say({ kind: "progress", done: Number(bytesDone), total: Number(bytesTotal) });
    });
    try {
      const round = await this.#batch!.transfer(role === "source" ? "send" : "recv", { timeoutMs });
      const { bytesReceived, seconds, predictedSeconds } = await round.wait();
      return {
        bytes: Number(bytesReceived),
        seconds,
        ...(predictedSeconds === undefined ? {} : { predictedSeconds }),
      };
    } finally {
      subscription.unsubscribe();
    }
  }

  /** Compares every byte with what the checkpoint and the round say, past planner, agents and transport. */
  async #verify(round: number): Promise<number> {
    const told = this.#progress();
    const options = {
      change: (values: Buffer, local: LocalTensor) => train(values, local.tensor.dtype, round),
    };
    for (const { local, tensor } of this.#shards) {
      for (const slab of slabs(local, slabBytes)) {
        const expected = await expectedSlab(this.#checkpoint!, local, slab, options);
        const { buffer, byteOffset, byteLength } = bytesOf(tensor, slab.at, slab.bytes);
        requireEqual(`round ${round}`, local, slab, Buffer.from(buffer, byteOffset, byteLength), expected);
        told(slab.bytes);
      }
    }
    return this.#totalBytes;
  }

  get #totalBytes(): number {
    return this.#shards.reduce((sum, { local }) => sum + local.bytes, 0);
  }

  #progress(): (bytes: number) => void {
    const total = this.#totalBytes;
    let done = 0;
    let last = performance.now();
    return (bytes) => {
      done += bytes;
      const now = performance.now();
      if (now - last < progressEveryMs && done < total) return;
      last = now;
      void say({ kind: "progress", done, total });
    };
  }
}

function bytesOf({ data, dtype, size }: SharedTensor, at: number, bytes: number): Uint8Array<ArrayBuffer> {
  if (at + bytes > size * itemSize(dtype)) throw new RangeError("a slab ends beyond its tensor");
  return new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset + at, bytes);
}

function say(message: DemoMessage): Promise<void> {
  return new Promise((resolve) => {
    if (!process.connected) resolve();
    else process.send!(message, () => resolve());
  });
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, "SIGTERM");
  } catch {
    // It has ended already.
  }
}
