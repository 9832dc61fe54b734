import type { Report } from "./job/schedule.ts";

interface SeedRange {
  readonly first: number;
  readonly runs: number;
  /** Threads. */
  readonly jobs: number;
  readonly trace?: boolean;
  /** Is told of every schedule; false ends it. */
  readonly onReport: (report: Report) => boolean;
}

/** Rejects where a thread fails. */
export function runSeeds(bundle: string, range: SeedRange): Promise<void>;
