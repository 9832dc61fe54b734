import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";

const script = join(import.meta.dirname, "../oracle/tcpstore.py");
// The version without importing torch, which takes seconds.
const probe = spawnSync(
  "python3",
  ["-c", "from importlib.metadata import version; print(version('torch'))"],
  {
    encoding: "utf8",
  },
);

export const torchVersion = probe.status === 0 ? probe.stdout.trim() : undefined;
/** Why tests against the real torch are skipped, if they are. */
export const torchMissing = torchVersion === undefined ? "skipped: python3 here has no torch" : undefined;

function run(args: readonly string[]): ChildProcess {
  return spawn("python3", [script, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
    // Its warnings are about what the tests send on purpose.
    env: { ...process.env, TORCH_CPP_LOG_LEVEL: "ERROR" },
  });
}

/** The real torch's server, in a process of its own. */
export class TorchServer implements AsyncDisposable {
  readonly port: number;
  readonly #process: ChildProcess;

  private constructor(process: ChildProcess, port: number) {
    this.#process = process;
    this.port = port;
  }

  static async start(): Promise<TorchServer> {
    const process = run(["serve"]);
    const [line] = (await once(createInterface(process.stdout!), "line")) as [string];
    return new TorchServer(process, Number(line));
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    await once(this.#process, "exit");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) await this.kill();
  }
}

/** Runs the real torch's client against a port; answers the lines that it printed. */
export async function torchClient(mode: "client" | "meet", port: number): Promise<string[]> {
  const process = run([mode, String(port)]);
  const [lines, [code]] = await Promise.all([collect(process), once(process, "exit")]);
  if (code !== 0) throw new Error(`torch's client ended with ${code}`);
  return lines;
}

async function collect(process: ChildProcess): Promise<string[]> {
  const lines: string[] = [];
  for await (const line of createInterface(process.stdout!)) lines.push(line);
  return lines;
}
