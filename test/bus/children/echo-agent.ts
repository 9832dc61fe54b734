/**
 * A minimal agent process for the tests and the benchmark. It claims its paths, ends what its predecessor had started, and
 * answers CleanupBatch and QueryStatus with its own pid and how often that client's commands have run. `die` kills it at a step of the first
 * command that it meets. Every run of a command leaves a line in `log`.
 */
import { appendFileSync } from "node:fs";
import { ClientKeeper } from "../../../src/bus/agent/clients.ts";
import { CommandPump, settleLeftovers } from "../../../src/bus/agent/pump.ts";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { ownIdentity } from "../../../src/bus/process/identity.ts";
import { claimFolder, startHeartbeat, unlinkHeartbeat } from "../../../src/bus/process/liveness.ts";
import { openWaker, unlinkSemaphore } from "../../../src/bus/process/semaphore.ts";
import { openCommandQueue } from "../../../src/bus/queue/command-queue.ts";
import type { Command } from "../../../src/bus/queue/commands.ts";
import { openState } from "../../../src/bus/queue/state.ts";
import { TensorBusError } from "../../../src/errors.ts";

export interface EchoAgentOptions {
  readonly queue: string;
  readonly state: string;
  readonly capacity?: number;
  readonly log?: string;
  readonly die?: "before" | "started" | "answered" | "removed";
  readonly stuckMs?: number;
}

/** What the agent tells the process that forked it. */
export type EchoAgentMessage =
  | { readonly ready: true; readonly generation: bigint; readonly lost: number; readonly wake: string }
  | { readonly failed: string }
  | { readonly fault: string }
  | { readonly gone: bigint }
  | { readonly cpuUs: number };

const options: EchoAgentOptions = JSON.parse(process.argv.at(-1)!);
const tell = (message: EchoAgentMessage) => process.send?.(message);
const dieAt = (step: EchoAgentOptions["die"]) => {
  if (options.die === step) process.kill(process.pid, "SIGKILL");
};

/** Commands that end once somebody has them hurry. */
const slow: (() => void)[] = [];
const hurry = () => {
  for (const end of slow.splice(0)) end();
};

const runs = new Map<bigint, number>();
function run(command: Command): unknown {
  if (command.type !== "CleanupBatch" && command.type !== "QueryStatus")
    throw new TensorBusError("TB_UNSUPPORTED", `no ${command.type} is echoed`);
  dieAt("started");
  const { client, id, batch } = command;
  const count = (runs.get(client.id) ?? 0) + 1;
  runs.set(client.id, count);
  if (options.log !== undefined) appendFileSync(options.log, `${client.id} ${id} ${process.pid}\n`);
  if (batch === "fail")
    throw new TensorBusError("TB_VERIFY", "it was asked to fail", { details: { batch, big: 2n ** 60n } });
  if (batch === "slow") return new Promise((resolve) => slow.push(() => resolve("late")));
  if (batch === "hurry") hurry();
  return { pid: process.pid, count, batch };
}

async function main(): Promise<void> {
  const stuck = options.stuckMs === undefined ? {} : { stuckMs: options.stuckMs };
  const port = openEventPort();
  const capacity = options.capacity === undefined ? {} : { capacity: options.capacity };
  const queue = await openCommandQueue({ path: options.queue, port, ...capacity, ...stuck });
  const state = await openState({ path: options.state, port, ...stuck });
  const claims = [queue, state].map(({ environment }) => claimFolder(port, environment.locksPath));
  const waker = openWaker(port);
  const heartbeat = startHeartbeat();
  const { agent, predecessor } = await state.enthrone({
    ...ownIdentity(),
    rank: 0,
    wake: waker.name,
    heartbeat: heartbeat.name,
    ready: true,
  });
  if (predecessor !== undefined) {
    unlinkSemaphore(predecessor.wake);
    unlinkHeartbeat(predecessor.heartbeat);
  }
  await claims[0]!.live();
  const lost = await settleLeftovers(queue, state);
  if (options.die !== undefined) injectDeaths(queue, state);
  const onFault = (error: unknown) =>
    tell({ fault: error instanceof TensorBusError ? error.code : String(error) });
  const keeper = new ClientKeeper({
    queue,
    state,
    port,
    onGone: (client) => {
      pump.forget(client.wake);
      tell({ gone: client.id });
    },
    onFault,
  });
  keeper.update();
  const pump = new CommandPump({ queue, state, waker, run, onClients: () => keeper.update(), onFault });
  port.hold();
  tell({ ready: true, generation: agent.generation, lost: lost.length, wake: waker.name });

  process.on("message", () => tell({ cpuUs: process.cpuUsage().user + process.cpuUsage().system }));
  process.once("SIGTERM", async () => {
    const drained = pump.close();
    hurry();
    await drained;
    keeper.close();
    heartbeat.close();
    waker.close();
    for (const claim of claims) claim.close();
    await state.close();
    await queue.close();
    await port.close();
    process.exit(0);
  });
}

type Queue = Awaited<ReturnType<typeof openCommandQueue>>;
type State = Awaited<ReturnType<typeof openState>>;

/** True for what the transaction that takes commands off the queue gives, if it took any. */
function startsAny(result: unknown): boolean {
  const { batch } = (result ?? {}) as { batch?: { started: readonly unknown[] } };
  return batch !== undefined && batch.started.length > 0;
}

/** Kills the process between two steps of a command's life. */
function injectDeaths(queue: Queue, state: State): void {
  const { environment } = queue;
  const transact = environment.write.bind(environment);
  environment.write = (what, work, deadline) =>
    transact(
      what,
      () => {
        const result = work();
        // All is written, nothing is committed.
        if (startsAny(result)) dieAt("before");
        return result;
      },
      deadline,
    );
  const dequeue = queue.dequeue.bind(queue);
  queue.dequeue = async (max, finished, deadline) => {
    const batch = await dequeue(max, finished, deadline);
    if (finished !== undefined && finished.length > 0) dieAt("removed");
    return batch;
  };
  const write = state.write.bind(state);
  state.write = async (what, work, deadline) => {
    const result = await write(what, work, deadline);
    dieAt("answered");
    return result;
  };
}

await main().catch((error) => tell({ failed: error instanceof TensorBusError ? error.code : String(error) }));
