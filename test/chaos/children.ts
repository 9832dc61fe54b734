/** Real processes: agents, stores and hosts of ranks, each of which may be killed, stopped and started again. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import type { Outcome, Request } from "./protocol.ts";

export interface Programs {
  /** The command line, the host of a rank, the store: bundles that Node.js runs. */
  readonly cli: string;
  readonly rank: string;
  readonly store: string;
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
  { cli }: Programs,
  argv: readonly string[],
  environment: NodeJS.ProcessEnv,
): Promise<Child> {
  const child = new Child(
    spawn(process.execPath, [cli, "agent", ...argv], { stdio: ["ignore", "pipe", "pipe"], env: environment }),
  );
  const end = Date.now() + 60_000;
  while (!child.output.includes("ready: rank")) {
    if (!child.isRunning || Date.now() > end) {
      await child.kill();
      throw new Error(`an agent did not start: ${child.ended} ${child.output}`);
    }
    await new Promise((done) => setTimeout(done, 20));
  }
  return child;
}

export async function startForked(program: string, parameters: readonly string[]): Promise<Child> {
  const child = new Child(
    fork(program, parameters, { serialization: "advanced", stdio: ["ignore", "pipe", "pipe", "ipc"] }),
  );
  await Promise.race([once(child.process, "message"), once(child.process, "exit")]);
  if (!child.isRunning) throw new Error(`${program} did not start: ${child.output}`);
  return child;
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
