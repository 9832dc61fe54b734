/** The agents of one host, under one process: started together, ended together, their logs in one place. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { formatRanks } from "./ranks.ts";

interface SupervisorOptions {
  /** The ranks of each process. */
  readonly groups: readonly (readonly number[])[];
  /** The command line's own script. */
  readonly entry: string;
  /** What each agent's command line has besides its rank. */
  readonly flags: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  /** A line of an agent: of its log, or what it says when it is ready. */
  readonly onLine: (group: string, line: string) => void;
}

/** A process that ended by itself: its ranks (`rank 3`, `ranks 0,1`), and the exit code that the supervisor takes over. */
interface EndedAgent {
  readonly group: string;
  readonly exitCode: number;
  readonly how: string;
}

/** The exit code for an agent that a signal killed: a transfer could not go on. */
const killed = 4;

export class AgentSupervisor {
  readonly #options: SupervisorOptions;
  readonly #agents = new Map<string, ChildProcess>();
  readonly #waiting: Set<number>;
  #ended: EndedAgent | undefined;
  #allEnded!: () => void;
  #allReady!: () => void;
  /** Resolves when every agent takes commands. Never settles if one ends before. */
  readonly ready: Promise<void>;
  /** Resolves when no agent runs any more. */
  readonly over: Promise<void>;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#waiting = new Set(options.groups.flat());
    this.ready = new Promise((resolve) => {
      this.#allReady = resolve;
    });
    this.over = new Promise((resolve) => {
      this.#allEnded = resolve;
    });
    for (const ranks of options.groups) this.#start(ranks);
  }

  /** The first agent that ended though nobody had asked it to. */
  get ended(): EndedAgent | undefined {
    return this.#ended;
  }

  /** Has all agents drain; once more, and they cancel what is under way. */
  stop(): void {
    for (const agent of this.#agents.values()) agent.kill("SIGTERM");
  }

  #start(ranks: readonly number[]): void {
    const { entry, flags, environment } = this.#options;
    const group = ranks.length === 1 ? `rank ${ranks[0]}` : `ranks ${formatRanks(ranks)}`;
    // An agent ends with this process, however that ends: its standard input ends then.
    const own = ["--ranks", formatRanks(ranks), "--until-stdin-ends"];
    const child = spawn(process.execPath, [entry, "agent", ...flags, ...own], {
      stdio: ["pipe", "pipe", "pipe"],
      env: environment,
    });
    this.#agents.set(group, child);
    for (const stream of [child.stdout, child.stderr]) this.#follow(group, stream);
    child.stdin.on("error", () => {});
    child.once("error", (error) => this.#end(group, killed, `did not start: ${error.message}`));
    child.once("close", (code, signal) =>
      this.#end(
        group,
        code ?? killed,
        signal === null ? `ended with exit code ${code}` : `was killed by ${signal}`,
      ),
    );
  }

  #follow(group: string, stream: Readable): void {
    createInterface({ input: stream }).on("line", (line) => {
      this.#options.onLine(group, line);
      const ready = /^ready: rank (\d+) /.exec(line);
      if (ready === null) return;
      this.#waiting.delete(Number(ready[1]));
      if (this.#waiting.size === 0) this.#allReady();
    });
  }

  #end(group: string, exitCode: number, how: string): void {
    if (!this.#agents.delete(group)) return;
    const first = this.#ended === undefined;
    this.#ended ??= { group, exitCode, how };
    // Agents need each other: one that is gone takes the others with it.
    if (first) this.stop();
    if (this.#agents.size === 0) this.#allEnded();
  }
}
