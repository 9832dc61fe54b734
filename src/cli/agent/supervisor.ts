/** The agents of one host, under one process: started together, ended together, their logs in one place. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { TensorBusError } from "../../errors.ts";

export interface SupervisorOptions {
  readonly ranks: readonly number[];
  /** The command line's own script. */
  readonly entry: string;
  /** What each agent's command line has besides its rank. */
  readonly flags: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  /** A line of an agent: of its log, or what it says when it is ready. */
  readonly onLine: (rank: number, line: string) => void;
}

/** An agent that ended by itself: its rank, and the exit code that the supervisor takes over. */
export interface EndedAgent {
  readonly rank: number;
  readonly exitCode: number;
  readonly how: string;
}

/** The exit code for an agent that a signal killed: a transfer could not go on. */
const killed = 4;

export class AgentSupervisor {
  readonly #options: SupervisorOptions;
  readonly #agents = new Map<number, ChildProcess>();
  readonly #waiting: Set<number>;
  #ended: EndedAgent | undefined;
  #allEnded!: () => void;
  #allReady!: () => void;
  /** Resolves when every agent takes commands. Stays open where one ends before. */
  readonly ready: Promise<void>;
  /** Resolves when no agent runs any more. */
  readonly over: Promise<void>;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#waiting = new Set(options.ranks);
    this.ready = new Promise((resolve) => {
      this.#allReady = resolve;
    });
    this.over = new Promise((resolve) => {
      this.#allEnded = resolve;
    });
    for (const rank of options.ranks) this.#start(rank);
  }

  /** The first agent that ended though nobody had asked it to. */
  get ended(): EndedAgent | undefined {
    return this.#ended;
  }

  /** Has all agents drain; once more, and they cancel what is under way. */
  stop(): void {
    for (const agent of this.#agents.values()) agent.kill("SIGTERM");
  }

  #start(rank: number): void {
    const { entry, flags, environment } = this.#options;
    // An agent ends with this process, however that ends: its standard input ends then.
    const child = spawn(process.execPath, [entry, "agent", ...flags, "--until-stdin-ends"], {
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...environment, AGENT_RANK: String(rank) },
    });
    this.#agents.set(rank, child);
    for (const stream of [child.stdout, child.stderr]) this.#follow(rank, stream);
    child.stdin.on("error", () => {});
    child.once("error", (error) => this.#end(rank, killed, `did not start: ${error.message}`));
    child.once("close", (code, signal) =>
      this.#end(
        rank,
        code ?? killed,
        signal === null ? `ended with exit code ${code}` : `was killed by ${signal}`,
      ),
    );
  }

  #follow(rank: number, stream: Readable): void {
    createInterface({ input: stream }).on("line", (line) => {
      this.#options.onLine(rank, line);
      if (!line.startsWith("ready: ")) return;
      this.#waiting.delete(rank);
      if (this.#waiting.size === 0) this.#allReady();
    });
  }

  #end(rank: number, exitCode: number, how: string): void {
    if (!this.#agents.delete(rank)) return;
    const first = this.#ended === undefined;
    this.#ended ??= { rank, exitCode, how };
    // Agents need each other: one that is gone takes the others with it.
    if (first) this.stop();
    if (this.#agents.size === 0) this.#allEnded();
  }
}

/** `0..3` and `0,2,5`, or both: `0..3,8`. `TB_SPEC` for anything else. */
export function parseRanks(name: string, text: string): number[] {
  const ranks = text.split(",").flatMap((part) => {
    const match = /^(\d+)(?:\.\.(\d+))?$/.exec(part.trim());
    const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])];
    if (match === null || last < first || last - first > 2 ** 16) {
      throw new TensorBusError("TB_SPEC", `${name} must be ranks such as 0..3 or 0,2,5, not ${text}`, {
        details: { [name]: text },
      });
    }
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
  if (new Set(ranks).size === ranks.length) return ranks;
  throw new TensorBusError("TB_SPEC", `${name} names a rank twice: ${text}`, { details: { [name]: text } });
}

/** The sides of a world, by name: `trainer=0..3`. `TB_SPEC` if one is malformed, or a rank stands on two. */
export function parseSides(texts: readonly string[]): Map<string, number[]> {
  const sides = new Map<string, number[]>();
  for (const text of texts) {
    const [name, ranks, more] = text.split("=");
    if (!name || ranks === undefined || more !== undefined || sides.has(name)) {
      throw new TensorBusError("TB_SPEC", `a side is NAME=RANKS, each name once, not ${text}`, {
        details: { side: text },
      });
    }
    sides.set(name, parseRanks(`side ${name}`, ranks));
  }
  return sides;
}

/** The text that one agent's environment hands on and that `parseSides` reads again. */
export function formatSides(sides: ReadonlyMap<string, readonly number[]>): string {
  return [...sides].map(([name, ranks]) => `${name}=${ranks.join(",")}`).join(";");
}
