/** `ucx_perftest`, UCX's own program for measuring, as a ceiling: one process reads from another (`ucp_get`). */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { ucxTransports } from "./cases.ts";
import type { Ceiling } from "./processes.ts";

const port = 20_000 + (process.pid % 10_000);
/** Tells the processor time of what it has run, in its last two lines. */
const timed = 'stdbuf -oL ucx_perftest "$@"; code=$?; times; exit $code';

export class Perftest implements Ceiling {
  readonly #bytes: number;
  #processorSeconds = 0;

  constructor(bytes: number) {
    this.#bytes = bytes;
  }

  /** Reads as many bytes in all by gets of that size, always of the same memory; its own clock counts. */
  async run(callBytes: number): Promise<number> {
    const server = this.#start("-p", port);
    await server.line("Waiting for connection");
    const options = ["-t", "ucp_get", "-f", "-w", 1, "-s", callBytes, "-n", this.#bytes / callBytes] as const;
    const client = this.#start("127.0.0.1", "-p", port, ...options);
    const [lines] = await Promise.all([client.ended, server.ended]);
    // Iterations, three latencies, the average and overall MiB a second, and two rates of messages.
    const numbers = lines
      .map((line) => line.trim().split(/\s+/).map(Number))
      .find(({ length }) => length === 8);
    if (numbers === undefined || !(numbers[5]! > 0)) throw new Error(`ucx_perftest said ${lines.join("\n")}`);
    return this.#bytes / (numbers[5]! * 2 ** 20);
  }

  processorSeconds(): number {
    return this.#processorSeconds;
  }

  end(): void {}

  #start(...args: readonly (string | number)[]) {
    const env = { ...process.env, UCX_TLS: ucxTransports };
    const child = spawn("sh", ["-c", timed, "sh", ...args.map(String)], {
      stdio: ["ignore", "pipe", "inherit"],
      env,
    });
    const lines: string[] = [];
    const input = createInterface({ input: child.stdout! });
    input.on("line", (line) => lines.push(line));
    return { line: (text: string) => awaitLine(input, text), ended: this.#end(child, lines) };
  }

  async #end(child: ChildProcess, lines: string[]): Promise<string[]> {
    const [code] = await once(child, "close");
    if (code !== 0) throw new Error(`ucx_perftest ended with ${code}: ${lines.join("\n")}`);
    for (const [, minutes, seconds] of lines.at(-1)!.matchAll(/(\d+)m([\d.]+)s/g)) {
      this.#processorSeconds += Number(minutes) * 60 + Number(seconds);
    }
    return lines;
  }
}

async function awaitLine(input: ReturnType<typeof createInterface>, text: string): Promise<void> {
  for (;;) {
    const [line] = await Promise.race([once(input, "line"), once(input, "close")]);
    if (line === undefined) throw new Error("ucx_perftest ended before it waited for its client");
    if (line.includes(text)) return;
  }
}
