/**
 * The processes of the queue's benchmark. A command's way from a client to its agent and back, beside the least that two
 * processes need for that: a post of a semaphore, a Worker that waits on one, and its message to the main thread, in both
 * directions. All times are microseconds.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { privateName } from "../../src/bus/process/names.ts";
import { openBell, unlinkSemaphore } from "../../src/bus/process/semaphore.ts";
import { nativeBus } from "../../src/ffi/bus.ts";
import { EchoClient } from "../../test/bus/children/echo-client.ts";

const self = fileURLToPath(import.meta.url);

interface Times {
  readonly count: number;
  readonly median: number;
  readonly p99: number;
}

export type QueueResult =
  | ({
      readonly name: string;
      readonly unit: "us";
      readonly ceiling?: { readonly name: string } & Times;
      readonly overCeiling?: number;
    } & Times)
  | { readonly name: string; readonly unit: "share of a core"; readonly value: number };

const parts = 20;
const partSeconds = 0.2;

function summarize(times: number[]): Times {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!;
  return { count: sorted.length, median: at(0.5), p99: at(0.99) };
}

/** Runs in a Worker: waits on the semaphore and tells the main thread of every post. */
function waitForPosts(name: string): void {
  const semaphore = nativeBus.tb_semaphore_open(name);
  for (;;) {
    nativeBus.tb_semaphore_wait(semaphore, 1n << 62n);
    parentPort!.postMessage(0);
  }
}

/** A semaphore of this process, and a Worker that waits on it. */
class BareHop {
  readonly name = privateName();
  readonly worker: Worker;

  constructor(onPost: () => void) {
    nativeBus.tb_semaphore_create(this.name);
    this.worker = new Worker(self, { workerData: { wait: this.name } });
    this.worker.on("message", onPost);
  }

  end(): void {
    unlinkSemaphore(this.name);
    // The Worker sleeps in C, where nothing reaches it.
    process.kill(process.pid, "SIGKILL");
  }
}

function forkSelf(role: string, options: unknown): ChildProcess {
  return fork(self, [role, JSON.stringify(options)], { serialization: "advanced" });
}

/** The far end of the bare hop: posts back whatever it is posted. */
async function answerHops(): Promise<void> {
  const { name } = JSON.parse(process.argv.at(-1)!);
  const bell = openBell(name);
  const hop = new BareHop(() => bell.ring());
  await once(hop.worker, "online");
  process.once("disconnect", () => hop.end());
  process.send!(hop.name);
}

interface RoundTrip {
  /** One round trip; resolves when the answer has come. */
  readonly turn: () => Promise<unknown>;
  readonly close: () => Promise<void>;
}

/** The near end of the bare hop, in a process of its own, since its Worker cannot be ended otherwise. */
async function measureHops(): Promise<void> {
  let answered = () => {};
  const hop = new BareHop(() => answered());
  const peer = forkSelf("hop-peer", { name: hop.name });
  const [name] = await once(peer, "message");
  const bell = openBell(name);
  const turn = () =>
    new Promise<void>((resolve) => {
      answered = resolve;
      bell.ring();
    });
  process.on("message", async ({ pauseMs, seconds }: { pauseMs: number; seconds: number }) => {
    process.send!(await measure(turn, pauseMs, seconds));
  });
  process.once("disconnect", () => {
    peer.disconnect();
    hop.end();
  });
  process.send!("ready");
}

async function measure(turn: () => Promise<unknown>, pauseMs: number, seconds: number): Promise<number[]> {
  const times: number[] = [];
  const end = performance.now() + seconds * 1000;
  while (performance.now() < end) {
    if (pauseMs > 0) await sleep(pauseMs);
    const start = process.hrtime.bigint();
    await turn();
    times.push(Number(process.hrtime.bigint() - start) / 1000);
  }
  return times;
}

async function openQueue(
  folder: string,
  enqueueTimes: number[],
): Promise<RoundTrip & { agent: ChildProcess }> {
  const paths = { queue: join(folder, "queue"), state: join(folder, "state") };
  const agent = forkSelf("agent", paths);
  const [message] = await once(agent, "message");
  if (!("ready" in message)) throw new Error(`the agent failed: ${JSON.stringify(message)}`);
  const client = await EchoClient.connect(paths);
  const turn = async () => {
    const command = client.makeQuestion("batch");
    const result = client.expect(command.id);
    const start = process.hrtime.bigint();
    await client.queue.enqueue(command, client.waker);
    enqueueTimes.push(Number(process.hrtime.bigint() - start) / 1000);
    client.ring();
    await result;
  };
  const close = async () => {
    await client.close();
    agent.kill("SIGTERM");
    await once(agent, "exit");
  };
  return { turn, close, agent };
}

/** Share of one core that the agent takes while nobody asks anything of it. */
async function idleShare(agent: ChildProcess, seconds: number): Promise<number> {
  const cpuUs = async () => {
    agent.send("cpu");
    const [message] = await once(agent, "message");
    return message.cpuUs as number;
  };
  const before = await cpuUs();
  await sleep(seconds * 1000);
  return ((await cpuUs()) - before) / (seconds * 1e6);
}

/** All cases, each told as it is done; in a process of its own, whose event loop nobody else uses. */
async function measureAll(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-bench-"));
  const enqueueTimes: number[] = [];
  const hops = forkSelf("hop", {});
  await once(hops, "message");
  const queue = await openQueue(folder, enqueueTimes);
  const results: QueueResult[] = [];
  for (const [name, pauseMs] of [
    ["back to back", 0],
    ["every 5 ms", 5],
  ] as const) {
    const times: { hop: number[]; queue: number[] } = { hop: [], queue: [] };
    await measure(queue.turn, pauseMs, partSeconds);
    enqueueTimes.length = 0;
    // In turns, so that both meet the same machine.
    for (let part = 0; part < parts; part++) {
      hops.send({ pauseMs, seconds: partSeconds });
      times.hop = times.hop.concat((await once(hops, "message"))[0]);
      times.queue = times.queue.concat(await measure(queue.turn, pauseMs, partSeconds));
    }
    const [command, hop] = [summarize(times.queue), summarize(times.hop)];
    const ceiling = { name: "bare hop", ...hop };
    const overCeiling = command.median / hop.median;
    results.push({ name: `queue/round trip ${name}`, unit: "us", ...command, ceiling, overCeiling });
    results.push({ name: `queue/enqueue ${name}`, unit: "us", ...summarize(enqueueTimes) });
  }
  const idle = await idleShare(queue.agent, 2 * parts * partSeconds);
  results.push({ name: "queue/idle agent", unit: "share of a core", value: idle });
  await queue.close();
  hops.disconnect();
  rmSync(folder, { recursive: true, force: true });
  process.send!(results);
  process.disconnect!();
}

if (!isMainThread) waitForPosts(workerData.wait);
else if (process.argv[2] === "agent") await import("../../test/bus/children/echo-agent.ts");
else if (process.argv[2] === "hop-peer") await answerHops();
else if (process.argv[2] === "hop") await measureHops();
else await measureAll();
