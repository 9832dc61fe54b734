/** One rank of `tensorbus reshard`, in a process of its own: reads its shards, takes part in the transfer, writes its file. */
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { EMPTY } from "rxjs";
import { cancelledError } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { createExecutor } from "../../exec/executor.ts";
import type { HostMemory, TensorMemory } from "../../memory/index.ts";
import {
  createSafetensors,
  openSafetensors,
  type SafetensorsCheckpoint,
  type SafetensorsWriter,
} from "../../model/safetensors.ts";
import { Plan } from "../../plan/index.ts";
import { tcpStore } from "../../store/tcp-store.ts";
import { chooseTransport } from "../transports.ts";
import { allocateTensors, type LocalTensor, localTensors, slabs } from "./local-tensors.ts";
import { failureOf, type Phase, type RankJob, type RankMessage, type SupervisorMessage } from "./messages.ts";
import { verifyRankFile } from "./verify.ts";

const slabBytes = 64 * 2 ** 20;

/** Runs the job that the supervisor sends over the IPC channel; settles when the process may end. */
export async function runReshardRank(): Promise<void> {
  if (process.send === undefined) {
    throw new TensorBusError("TB_SPEC", "this command is started by `tensorbus reshard`, not by hand");
  }
  const abort = new AbortController();
  const channel = new SupervisorChannel(abort);
  const job = await channel.job;
  try {
    await runRank(job, channel, abort.signal);
  } catch (error) {
    await channel.send({ kind: "failed", failure: failureOf(error, job.rank) });
    process.exitCode = error instanceof TensorBusError ? error.exitCode : 4;
  } finally {
    channel.close();
  }
}

/** The supervisor's end: a lost supervisor is an `abort`. */
class SupervisorChannel {
  readonly job: Promise<RankJob>;
  readonly commit: Promise<void>;
  readonly #abort: AbortController;

  constructor(abort: AbortController) {
    this.#abort = abort;
    this.job = this.#message((message) => (message.kind === "job" ? message : undefined));
    this.commit = this.#message((message) => (message.kind === "commit" ? message : undefined)).then(
      () => undefined,
    );
    // Awaited only by a rank that gets so far; what ends the wait is also in the signal.
    this.commit.catch(() => undefined);
    process.on("message", (message: SupervisorMessage) => {
      if (message.kind !== "abort") return;
      void this.send({ kind: "ending" });
      abort.abort(new Error("the supervisor ended the transfer"));
    });
    process.once("disconnect", () => abort.abort(new Error("the supervisor is gone")));
  }

  /** The first message that `pick` takes; `TB_CANCELLED` once this process is to end. */
  #message<T>(pick: (message: SupervisorMessage) => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      process.on("message", (message: SupervisorMessage) => {
        const picked = pick(message);
        if (picked !== undefined) resolve(picked);
      });
      const { signal } = this.#abort;
      signal.addEventListener("abort", () => reject(cancelledError("resharding", signal)), { once: true });
    });
  }

  send(message: RankMessage): Promise<void> {
    return new Promise((resolve) => {
      if (!process.connected) resolve();
      else process.send!(message, () => resolve());
    });
  }

  progress(phase: Phase, total: number): (bytes: number) => void {
    let done = 0;
    let last = performance.now();
    void this.send({ kind: "progress", phase, done, total });
    return (bytes) => {
      done += bytes;
      const now = performance.now();
      if (now - last < 50 && done < total) return;
      last = now;
      void this.send({ kind: "progress", phase, done, total });
    };
  }

  close(): void {
    process.removeAllListeners("disconnect");
    this.#abort.abort();
    if (process.connected) process.disconnect();
  }
}

async function runRank(job: RankJob, channel: SupervisorChannel, signal: AbortSignal): Promise<void> {
  const plan = Plan.load(await readFile(job.planPath));
  const tensors = localTensors(plan.input, job.rank, job.role);
  const total = tensors.reduce((sum, { bytes }) => sum + bytes, 0);
  await using checkpoint = await openSafetensors(job.checkpoint);
  const writer =
    job.role === "target" ? await beginFile(job, plan, tensors, checkpoint.metadata, signal) : undefined;
  try {
    const { memory, places } = allocateTensors(tensors);
    await using _memory = memory;
    if (job.role === "source") {
      const onBytes = channel.progress("read", total);
      for (const local of tensors)
        await readShard(checkpoint, local, places.get(local.index)!, signal, onBytes);
    }
    await transfer(job, plan, memory, places, channel, signal);
    let verifiedBytes = 0;
    if (writer !== undefined) {
      const onBytes = channel.progress("write", total);
      for (const local of tensors) await writeShard(writer, local, places.get(local.index)!, onBytes);
      if (job.verify) {
        const onVerified = channel.progress("verify", total);
        verifiedBytes = await verifyRankFile(checkpoint, writer.temporaryPath, tensors, {
          signal,
          onBytes: onVerified,
        });
      }
    }
    await writer?.seal();
    await channel.send({
      kind: "ready",
      verifiedBytes,
      ...(writer && { temporaryPath: writer.temporaryPath }),
    });
    await channel.commit;
    writer?.letGo();
  } finally {
    await writer?.discard();
  }
}

function beginFile(
  job: RankJob,
  plan: Plan,
  tensors: readonly LocalTensor[],
  metadata: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<SafetensorsWriter> {
  const list = tensors.map(({ tensor, holding, dtype }) => ({
    name: tensor.name,
    shape: holding.localShape,
    dtype,
  }));
  return createSafetensors(job.outPath!, list, {
    signal,
    metadata: {
      format: "pt",
      ...metadata,
      "tensorbus.file": basename(job.outPath!),
      "tensorbus.rank": String(job.rank),
      "tensorbus.plan": plan.digest,
    },
  });
}

async function readShard(
  checkpoint: SafetensorsCheckpoint,
  local: LocalTensor,
  place: TensorMemory,
  signal: AbortSignal,
  onBytes: (bytes: number) => void,
): Promise<void> {
  for (const slab of slabs(local, slabBytes)) {
    const into = viewOf(place, slab.at, slab.bytes);
    for (const { box, at } of slab.boxes) {
      await checkpoint.readBox(local.tensor.name, box, into, { shape: slab.shape, offsets: at }, { signal });
    }
    onBytes(slab.bytes);
  }
}

async function writeShard(
  writer: SafetensorsWriter,
  local: LocalTensor,
  place: TensorMemory,
  onBytes: (bytes: number) => void,
): Promise<void> {
  for (const slab of slabs(local, slabBytes)) {
    await writer.write(local.tensor.name, viewOf(place, slab.at, slab.bytes), slab.at);
    onBytes(slab.bytes);
  }
}

function viewOf({ memory, offset }: TensorMemory, at: number, bytes: number): Uint8Array {
  return (memory as HostMemory).view(Uint8Array, offset + BigInt(at), bytes);
}

async function transfer(
  job: RankJob,
  plan: Plan,
  memory: HostMemory,
  places: ReadonlyMap<number, TensorMemory>,
  channel: SupervisorChannel,
  signal: AbortSignal,
): Promise<void> {
  const { timeoutMs } = job;
  await using store = await tcpStore({
    host: "127.0.0.1",
    port: job.storePort,
    namespace: "reshard",
    signal,
    timeoutMs,
  });
  const transport = await chooseTransport(job.transport);
  await using session = await transport.open({
    rank: job.rank,
    world: job.world,
    store,
    signal,
    timeoutMs,
  });
  session.register(memory);
  const tensors = new Map([...places].map(([index, place]) => [index, { [job.role]: place }]));
  await using execution = await createExecutor(session).prepare(plan, {
    key: "reshard",
    tensors,
    signal,
    timeoutMs,
    progressMs: 50,
  });
  // What the targets have received: a byte counts once.
  const received$ = job.role === "target" ? execution.progress$ : EMPTY;
  const subscription = received$.subscribe(({ bytesDone, bytesTotal }) => {
    void channel.send({
      kind: "progress",
      phase: "move",
      done: Number(bytesDone),
      total: Number(bytesTotal),
    });
  });
  try {
    const { bytesReceived, seconds } = await execution.run({ signal, timeoutMs });
    const transports = [...new Set([...execution.stats.peers.values()].map(({ transport }) => transport))];
    await channel.send({ kind: "moved", received: Number(bytesReceived), seconds, transports });
  } finally {
    subscription.unsubscribe();
  }
}
