/** What happened in a schedule, for people, and a number that two runs of one seed have in common. */
import { createHash, type Hash } from "node:crypto";
import type { Scheduler } from "./scheduler.ts";

export class Trace {
  readonly lines: string[] = [];
  readonly #scheduler: Scheduler;
  readonly #keeps: boolean;
  readonly #hash: Hash = createHash("sha256");

  /** `keeps`: lines can be read afterwards. */
  constructor(scheduler: Scheduler, keeps: boolean) {
    this.#scheduler = scheduler;
    this.#keeps = keeps;
  }

  say(who: string, what: string): void {
    const line = `${this.#scheduler.now.toFixed(3).padStart(11)}  ${who.padEnd(10)} ${what}`;
    this.#hash.update(line);
    if (this.#keeps) this.lines.push(line);
  }

  get digest(): string {
    return this.#hash.copy().digest("hex").slice(0, 16);
  }
}

/** Values of an event in one line. */
export function brief(value: unknown): string {
  if (value instanceof Error) {
    const { code, details } = value as Error & { code?: string; details?: Record<string, unknown> };
    const rank = details?.["rank"] === undefined ? "" : ` rank ${details["rank"]}`;
    return `${code ?? value.name}${rank}: ${value.message}`;
  }
  return JSON.stringify(value, (_, each) =>
    typeof each === "bigint" ? Number(each) : each instanceof Error ? brief(each) : each,
  );
}
