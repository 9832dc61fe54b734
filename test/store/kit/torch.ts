import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";

const script = join(import.meta.dirname, "../../oracle/tcpstore.py");
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
/** Importing torch takes seconds, and many where others use the machine. */
export const torchStartMs = 180_000;

/** The real torch's server and client, in a process of their own. */
export class TorchServer implements AsyncDisposable {
  readonly port: number;
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  #asked: Promise<unknown> = Promise.resolve();

  private constructor(process: ChildProcess, lines: AsyncIterator<string>, port: number) {
    this.#process = process;
    this.#lines = lines;
    this.port = port;
  }

  static async start(): Promise<TorchServer> {
    const process = spawn("python3", [script, "serve"], {
      stdio: ["pipe", "pipe", "inherit"],
      // Its warnings are about what the tests send on purpose.
      env: { ...globalThis.process.env, TORCH_CPP_LOG_LEVEL: "ERROR" },
    });
    const lines = createInterface(process.stdout)[Symbol.asyncIterator]();
    const first = await lines.next();
    if (first.done) throw new Error("torch's server did not start");
    return new TorchServer(process, lines, Number(first.value));
  }

  /** Has the real torch's client work on a port, one after the other; the lines that it prints. */
  client(mode: "client" | "meet", port: number): Promise<string[]> {
    const answer = this.#asked.then(() => this.#ask(`${mode} ${port}`));
    this.#asked = answer.catch(() => {});
    return answer;
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    await once(this.#process, "exit");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) await this.kill();
  }

  async #ask(line: string): Promise<string[]> {
    this.#process.stdin!.write(`${line}\n`);
    const answer: string[] = [];
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done) throw new Error("torch's client ended");
      if (value === "end") return answer;
      answer.push(value);
    }
  }
}
