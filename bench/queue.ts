/**
 * The way of a command from a client to its agent and back, beside the least that two processes need for that: a post of
 * a semaphore, a Worker that waits on one, and its message to the main thread, in both directions. Prints JSON; all times
 * are microseconds. `--seconds N` bounds each case (default 3).
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { openBell, privateName, unlinkSemaphore } from "../src/bus/semaphore.ts";
import { nativeBus } from "../src/ffi/bus.ts";
import { EchoClient } from "../test/bus/echo-client.ts";

const self = fileURLToPath(import.meta.url);

interface Times {
  readonly n: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

function summarize(times: number[]): Times {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number) =>
    Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]! * 10) / 10;
  return { n: sorted.length, p50: at(0.5), p99: at(0.99), max: at(1) };
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

/** The near end of the bare hop, in a process of its own, since its Worker can not be ended otherwise. */
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
    const command = client.makeCommand("batch");
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

async function main(): Promise<void> {
  const flag = process.argv.indexOf("--seconds");
  const seconds = flag < 0 ? 3 : Number(process.argv[flag + 1]);
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-bench-"));
  const enqueueTimes: number[] = [];
  const hops = forkSelf("hop", {});
  await once(hops, "message");
  const queue = await openQueue(folder, enqueueTimes);
  const cases = [];
  for (const [name, pauseMs] of [
    ["back-to-back", 0],
    ["every 5 ms", 5],
  ] as const) {
    const times: { hop: number[]; queue: number[] } = { hop: [], queue: [] };
    await measure(queue.turn, pauseMs, seconds / 4);
    enqueueTimes.length = 0;
    // In turns, so that both meet the same machine.
    for (let part = 0; part < 4; part++) {
      hops.send({ pauseMs, seconds: seconds / 4 });
      times.hop = times.hop.concat((await once(hops, "message"))[0]);
      times.queue = times.queue.concat(await measure(queue.turn, pauseMs, seconds / 4));
    }
    const [command, hop] = [summarize(times.queue), summarize(times.hop)];
    const ratio = Math.round((command.p50 / hop.p50) * 100) / 100;
    cases.push({
      name: `round trip ${name}`,
      unit: "us",
      ...command,
      ceiling: { name: "bare hop", ...hop },
      ratio,
    });
    cases.push({ name: `enqueue ${name}`, unit: "us", ...summarize(enqueueTimes) });
  }
  const idle = await idleShare(queue.agent, seconds);
  cases.push({ name: "idle agent", unit: "share of a core", value: Math.round(idle * 1e5) / 1e5 });
  await queue.close();
  hops.disconnect();
  rmSync(folder, { recursive: true, force: true });
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version };
  process.stdout.write(`${JSON.stringify({ bench: "queue", machine, cases }, null, 2)}\n`);
}

if (!isMainThread) waitForPosts(workerData.wait);
else if (process.argv[2] === "agent") await import("../test/bus/echo-agent.ts");
else if (process.argv[2] === "hop-peer") await answerHops();
else if (process.argv[2] === "hop") await measureHops();
else await main();
