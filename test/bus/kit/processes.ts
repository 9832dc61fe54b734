/** Real processes for the tests: fixtures are bundled, forked, and ended with the test that forked them. */
import { type ChildProcess, fork } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { unlinkHeartbeat } from "../../../src/bus/process/liveness.ts";
import { unlinkSemaphore } from "../../../src/bus/process/semaphore.ts";
import { openCommandQueue } from "../../../src/bus/queue/command-queue.ts";
import type { Environment } from "../../../src/bus/queue/environment.ts";
import { openState } from "../../../src/bus/queue/state.ts";
import { builtChild } from "../../kit/builds.ts";
import { afterEachFile, afterEachTest } from "../../kit/endings.ts";
import type { BusPaths } from "../children/echo-client.ts";

const children = new Set<ChildProcess>();
const temporary: string[] = [];
const used: BusPaths[] = [];

/** The bundle of a fixture of this folder. */
export function bundle(name: string): string {
  return builtChild("bus", name);
}

export function forkFixture(name: string, options: unknown, execArgv: string[] = []): ChildProcess {
  const child = fork(bundle(name), [JSON.stringify(options)], { serialization: "advanced", execArgv });
  children.add(child);
  child.once("exit", () => children.delete(child));
  return child;
}

/** The next message that `accept` takes; an error if the process ends before. */
export function messageOf<T>(child: ChildProcess, accept: (message: T) => boolean = () => true): Promise<T> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: unknown) => {
      if (accept(message as T)) settle(() => resolve(message as T));
    };
    const onExit = (code: number | null, signal: string | null) =>
      settle(() => reject(new Error(`the process ended with ${signal ?? code}`)));
    const settle = (then: () => void) => {
      child.off("message", onMessage);
      child.off("exit", onExit);
      then();
    };
    child.on("message", onMessage);
    child.on("exit", onExit);
  });
}

export function exitOf(child: ChildProcess): Promise<{ code: number | null; signal: string | null }> {
  if (child.exitCode !== null || child.signalCode !== null) {
    return Promise.resolve({ code: child.exitCode, signal: child.signalCode });
  }
  return new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
}

/** Resolves once the kernel says that the process is stopped. */
export async function stopped(child: ChildProcess): Promise<void> {
  for (;;) {
    const stat = readFileSync(`/proc/${child.pid}/stat`, "utf8");
    if (stat.slice(stat.lastIndexOf(")") + 2)[0] === "T") return;
    await sleep(2);
  }
}

/** Stops an agent that is not writing into the queue: one that is stopped within a write keeps everybody's lock. */
export async function stopIdle(child: ChildProcess, queue: Environment): Promise<void> {
  for (;;) {
    child.kill("SIGSTOP");
    await stopped(child);
    if (queue.tryWrite(() => {}) !== undefined) return;
    child.kill("SIGCONT");
    await sleep(5);
  }
}

export async function kill(child: ChildProcess, signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
  const gone = exitOf(child);
  child.kill(signal);
  await gone;
}

/** A fresh private folder, removed after the tests of the file. */
export function temporaryFolder(): string {
  const path = mkdtempSync(join(tmpdir(), "tensorbus-test-"));
  temporary.push(path);
  return path;
}

export function freshPaths(): BusPaths & { readonly log: string } {
  const path = temporaryFolder();
  const paths = { queue: join(path, "queue"), state: join(path, "state"), log: join(path, "log") };
  used.push(paths);
  return paths;
}

/** Removes the names that killed processes left in shared memory: what their next agent would do. */
async function sweep(paths: BusPaths): Promise<void> {
  if (!existsSync(paths.queue) || !existsSync(paths.state)) return;
  await using port = openEventPort();
  await using queue = await openCommandQueue({ path: paths.queue, port });
  await using state = await openState({ path: paths.state, port });
  for (const { wake } of queue.clients()) unlinkSemaphore(wake);
  const agent = state.agent();
  if (agent === undefined) return;
  unlinkSemaphore(agent.wake);
  unlinkHeartbeat(agent.heartbeat);
}

afterEachTest(async () => {
  await Promise.all([...children].map((child) => kill(child)));
  for (const paths of used.splice(0)) await sweep(paths);
});

afterEachFile(() => {
  for (const path of temporary.splice(0)) rmSync(path, { recursive: true, force: true });
});
