/** Real processes: agents, stores and hosts of ranks, each of which may be killed, stopped and started again. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import type { Outcome, Request } from "./protocol.ts";

export interface Programs {
  /** The command line, the host of a rank, the store: bundles that Node.js runs. */
  readonly cli: string;
  readonly rank: string;
  readonly store: string;
  /** Milliseconds in which an agent is ready; default 60,000. */
  readonly agentStartMs?: number;
}

const usualStartMs = 60_000;
/** All that run. */
const running = new Set<Child>();
process.once("exit", () => {
  for (const child of running) child.signal("SIGKILL");
});

/** A process was not ready in time, or ended before. */
export class StartError extends Error {
  readonly isLate: boolean;

  constructor(message: string, isLate: boolean) {
    super(message);
    this.isLate = isLate;
  }
}

/** A process that is killed with the runner, whatever becomes of it meanwhile. */
export class Child {
  readonly process: ChildProcess;
  readonly pid: number;
  output = "";

  constructor(child: ChildProcess) {
    this.process = child;
    this.pid = child.pid!;
    child.stdout?.on("data", (data) => this.#keep(data));
    child.stderr?.on("data", (data) => this.#keep(data));
    child.on("error", () => {});
    running.add(this);
    child.once("exit", () => running.delete(this));
  }

  get isRunning(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  /** How it ended: an exit code or a signal. */
  get ended(): string {
    return String(this.process.signalCode ?? this.process.exitCode);
  }

  signal(signal: NodeJS.Signals): void {
    if (this.isRunning) this.process.kill(signal);
  }

  async kill(): Promise<void> {
    if (!this.isRunning) return;
    this.process.kill("SIGKILL");
    await once(this.process, "exit");
  }

  /** False where it did not end in time, and was killed. */
  async end(signal: NodeJS.Signals, timeoutMs: number): Promise<boolean> {
    this.signal(signal);
    const timer = setTimeout(() => this.process.kill("SIGKILL"), timeoutMs);
    if (this.isRunning) await once(this.process, "exit");
    clearTimeout(timer);
    return this.process.signalCode !== "SIGKILL";
  }

  #keep(data: Buffer): void {
    this.output = `${this.output}${data}`.slice(-4000);
  }
}

/** Runs until it says that it is ready. */
export async function startAgent(
  { cli, agentStartMs }: Programs,
  argv: readonly string[],
  environment: NodeJS.ProcessEnv,
  onSpawned: (child: Child) => void,
): Promise<Child> {
  const child = new Child(
    spawn(process.execPath, [cli, "agent", ...argv], { stdio: ["ignore", "pipe", "pipe"], env: environment }),
  );
  onSpawned(child);
  await ready("an agent", child, () => child.output.includes("ready: rank"), agentStartMs);
  return child;
}

export async function startForked(
  program: string,
  parameters: readonly string[],
  onSpawned: (child: Child) => void,
): Promise<Child> {
  const child = new Child(
    fork(program, parameters, { serialization: "advanced", stdio: ["ignore", "pipe", "pipe", "ipc"] }),
  );
  onSpawned(child);
  let hasSpoken = false;
  child.process.once("message", () => (hasSpoken = true));
  await ready(program, child, () => hasSpoken);
  return child;
}

async function ready(
  what: string,
  child: Child,
  isReady: () => boolean,
  startMs = usualStartMs,
): Promise<void> {
  const end = performance.now() + startMs;
  while (!isReady()) {
    const isLate = child.isRunning && performance.now() > end;
    if (!child.isRunning || isLate) {
      await child.kill();
      const how = isLate ? `was not ready after ${startMs} ms` : `ended with ${child.ended}`;
      throw new StartError(`${what} did not start: it ${how}: ${child.output}`, isLate);
    }
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** What the machine takes now for a process that does nothing: some 50 ms, if it has nothing else to do. */
export async function emptyStartMs(): Promise<number> {
  const began = performance.now();
  await once(spawn(process.execPath, ["-e", ""], { stdio: "ignore" }), "exit");
  return performance.now() - began;
}

let lastId = 0;

/** What a host is asked. */
export type Act<R = Request> = R extends Request ? Omit<R, "id"> : never;

/** Has the host of a rank do something; `ended` where it ends before it has answered. */
export function ask(child: Child, act: Act): Promise<Outcome> {
  lastId += 1;
  const id = lastId;
  const began = performance.now();
  return new Promise((resolve) => {
    const settle = (outcome: Outcome) => {
      child.process.off("message", onMessage);
      child.process.off("exit", onExit);
      resolve(outcome);
    };
    const onMessage = (message: Outcome) => {
      if (message.id === id) settle(message);
    };
    const onExit = () =>
      settle({ id, code: "ended", message: child.ended, ms: performance.now() - began, steps: [] });
    child.process.on("message", onMessage);
    child.process.once("exit", onExit);
    if (!child.isRunning || !child.process.connected) onExit();
    else child.process.send({ id, ...act }, () => {});
  });
}
