/**
 * An agent whose answers are scripted by the names of pairs and batches: the client's tests meet every kind of answer
 * without peers. It maps what clients register, and a transfer adds one to every element, so that memory is really shared.
 */
import { closeSync, fstatSync, openSync } from "node:fs";
import { ClientKeeper } from "../../../src/bus/agent/clients.ts";
import { CommandPump, settleLeftovers } from "../../../src/bus/agent/pump.ts";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { ownIdentity } from "../../../src/bus/process/identity.ts";
import { claimFolder, startHeartbeat } from "../../../src/bus/process/liveness.ts";
import { openWaker } from "../../../src/bus/process/semaphore.ts";
import { openCommandQueue } from "../../../src/bus/queue/command-queue.ts";
import {
  batchKey,
  type Command,
  type CommandOf,
  type CommandResult,
} from "../../../src/bus/queue/commands.ts";
import { openState } from "../../../src/bus/queue/state.ts";
import { decodeTensorTable } from "../../../src/bus/queue/tensor-table.ts";
import { TensorBusError } from "../../../src/errors.ts";
import { SharedMemory } from "../../../src/memory/shared-memory.ts";

export interface ScriptedAgentOptions {
  readonly queue: string;
  readonly state: string;
  readonly rank?: number;
  readonly capacity?: number;
}

export type ScriptedMessage =
  | { readonly ready: true; readonly generation: bigint }
  | { readonly failed: string }
  | { readonly command: Command }
  | { readonly gone: bigint; readonly batches: number };

const options: ScriptedAgentOptions = JSON.parse(process.argv.at(-1)!);
const tell = (message: ScriptedMessage) => process.send?.(message);

interface Batch {
  readonly instance: bigint;
  readonly owner: bigint;
  readonly memories: SharedMemory[];
  readonly command: CommandOf<"RegisterTensors">;
}
const batches = new Map<string, Batch>();
const parked = new Map<string, (error: TensorBusError) => void>();
let instances = 0n;

function run(command: Command): unknown {
  tell({ command });
  switch (command.type) {
    case "InitPair":
      return initPair(command);
    case "RegisterTensors":
      return register(command);
    case "Transfer":
      return transfer(command);
    case "QueryStatus":
      if (command.batch === "lie") return { ready: "perhaps" };
      return { ready: batches.has(batchKey(command.batch)) } satisfies CommandResult<"QueryStatus">;
    case "CleanupBatch":
      return { freed: cleanup(command) } satisfies CommandResult<"CleanupBatch">;
    case "Cancel": {
      const reject = parked.get(`${command.client.id} ${command.command}`);
      reject?.(
        new TensorBusError("TB_CANCELLED", "the agent has cancelled it", { details: { quiet: true } }),
      );
      return { found: reject !== undefined } satisfies CommandResult<"Cancel">;
    }
  }
}

function initPair({ pair, ...command }: CommandOf<"InitPair">): unknown {
  if (pair === "never") return park(command);
  if (pair === "odd") {
    throw new TensorBusError("TB_PAIR_MISMATCH", "rank 3 differs", { details: { pair, rank: 3 } });
  }
  return { localRanks: [0], remoteRanks: [1] } satisfies CommandResult<"InitPair">;
}

function register(command: CommandOf<"RegisterTensors">): unknown {
  const key = batchKey(command.batch);
  if (batches.has(key)) throw new TensorBusError("TB_EXISTS", `batch ${command.batch} stands`);
  const memories = command.regions.map((region) => {
    if (region.kind !== "shared") throw new TensorBusError("TB_UNSUPPORTED", region.kind);
    const fd = openSync(`/proc/${command.client.pid}/fd/${region.fd}`, "r+");
    const { dev, ino } = fstatSync(fd, { bigint: true });
    if (dev !== region.device || ino !== region.inode) throw new TensorBusError("TB_REGION", "another memfd");
    const memory = SharedMemory.map(fd, region.bytes);
    closeSync(fd);
    return memory;
  });
  instances += 1n;
  batches.set(key, { instance: instances, owner: command.client.id, memories, command });
  const digest = "00";
  const result = {
    instance: instances,
    number: 1,
    send: { digest, tensors: 1 },
    recv: { digest, tensors: 1 },
  };
  return command.batch === "late"
    ? new Promise((resolve) => setTimeout(() => resolve(result), 100))
    : (result satisfies CommandResult<"RegisterTensors">);
}

function transfer(command: CommandOf<"Transfer">): unknown {
  if (command.batch === "slow") return park(command);
  const batch = batches.get(batchKey(command.batch));
  if (batch === undefined) throw new TensorBusError("TB_BATCH_UNKNOWN", `no batch ${command.batch}`);
  for (const tensor of decodeTensorTable(batch.command.tensors, batch.memories.length)) {
    const [rows = 1n, columns = 1n] = tensor.shape;
    const [step = 0n, inner = 0n] = tensor.strides;
    const elements = batch.memories[tensor.region]!.view(Float32Array, tensor.offset);
    for (let i = 0n; i < rows; i++) {
      for (let j = 0n; j < columns; j++) elements[Number(i * step + j * inner)]! += 1;
    }
  }
  return {
    round: 1,
    epoch: 0,
    bytesSent: 0n,
    bytesReceived: 4n,
    bytesCopied: 0n,
    seconds: 0.5,
  } satisfies CommandResult<"Transfer">;
}

function cleanup({ batch, instance }: CommandOf<"CleanupBatch">): boolean {
  const known = batches.get(batchKey(batch));
  if (known?.instance !== instance) return false;
  for (const memory of known.memories) memory.close();
  return batches.delete(batchKey(batch));
}

/** Runs until it is cancelled, or its deadline. */
function park({ client, id, deadline }: Pick<Command, "client" | "id" | "deadline">): Promise<never> {
  const key = `${client.id} ${id}`;
  return new Promise<never>((_, reject) => {
    parked.set(key, reject);
    const ms = Number(deadline.ns - process.hrtime.bigint()) / 1e6;
    setTimeout(() => reject(new TensorBusError("TB_TIMEOUT", "the agent's own verdict")), ms);
  }).finally(() => parked.delete(key));
}

async function main(): Promise<void> {
  const port = openEventPort();
  const capacity = options.capacity === undefined ? {} : { capacity: options.capacity };
  const queue = await openCommandQueue({ path: options.queue, port, ...capacity });
  const state = await openState({ path: options.state, port });
  const claim = claimFolder(port, queue.environment.locksPath);
  const waker = openWaker(port);
  const identity = { ...ownIdentity(), wake: waker.name, heartbeat: startHeartbeat().name };
  const { agent } = await state.enthrone({ ...identity, rank: options.rank ?? 0, ready: true });
  await claim.live();
  await settleLeftovers(queue, state);
  const onFault = (error: unknown) => tell({ failed: String(error) });
  const onGone = ({ id, wake }: { id: bigint; wake: string }) => {
    pump.forget(wake);
    const left = [...batches].filter(([, batch]) => batch.owner === id);
    for (const [key] of left) batches.delete(key);
    tell({ gone: id, batches: left.length });
  };
  const keeper = new ClientKeeper({ queue, state, port, onGone, onFault });
  const pump = new CommandPump({ queue, state, waker, run, onClients: () => keeper.update(), onFault });
  keeper.update();
  port.hold();
  tell({ ready: true, generation: agent.generation });
}

await main().catch((error) => tell({ failed: error instanceof TensorBusError ? error.code : String(error) }));
