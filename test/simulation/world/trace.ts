/** What happened in a schedule, for people, and a number that two runs of one seed have in common. */
import type { Scheduler } from "./scheduler.ts";

export class Trace {
  readonly lines: string[] = [];
  readonly #scheduler: Scheduler;
  /** Lines can be read afterwards. */
  readonly keeps: boolean;
  #hash = 0x811c9dc5;

  constructor(scheduler: Scheduler, keeps: boolean) {
    this.#scheduler = scheduler;
    this.keeps = keeps;
  }

  /** `detail` is only looked at where lines are kept. */
  say(who: string, what: string, detail?: unknown): void {
    const { now } = this.#scheduler;
    this.#mix(`${now} ${who} ${what}`);
    if (!this.keeps) return;
    const more = detail === undefined ? "" : ` ${brief(detail)}`;
    this.lines.push(`${now.toFixed(3).padStart(11)}  ${who.padEnd(10)} ${what}${more}`);
  }

  get digest(): string {
    return this.#hash.toString(16).padStart(8, "0");
  }

  /** FNV-1a. */
  #mix(text: string): void {
    for (let index = 0; index < text.length; index++) {
      this.#hash = Math.imul(this.#hash ^ text.charCodeAt(index), 0x01000193) >>> 0;
    }
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
