/** Runs the schedules of a range of seeds in a thread, and posts what each came to. */
import { parentPort, workerData } from "node:worker_threads";
import { runSchedule } from "./job/schedule.ts";

export { runSchedule };

interface Work {
  readonly seeds: readonly number[];
  readonly trace: boolean;
}

const work = workerData as Work | null;
if (parentPort !== null && work !== null) {
  // Where errors come from is for those who read a trace; to know it takes a fifth of a schedule's time.
  if (!work.trace) Error.stackTraceLimit = 0;
  for (const seed of work.seeds) parentPort.postMessage(await runSchedule(seed, { trace: work.trace }));
  parentPort.close();
}
