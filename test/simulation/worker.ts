/** Runs schedules in a thread, and posts what each came to: those of the seeds that it is given, until it is given none. */
import { parentPort, workerData } from "node:worker_threads";
import { runSchedule } from "./job/schedule.ts";

export { runSchedule };

interface Seeds {
  readonly from: number;
  /** The one after the last. */
  readonly to: number;
}

const work = workerData as { readonly trace: boolean } | null;
if (parentPort !== null && work !== null) {
  const port = parentPort;
  const { trace } = work;
  // Where errors come from is for those who read a trace; to know it takes a fifth of a schedule's time.
  if (!trace) Error.stackTraceLimit = 0;
  port.on("message", async (seeds: Seeds | undefined) => {
    if (seeds === undefined) port.close();
    else
      for (let seed = seeds.from; seed < seeds.to; seed++)
        port.postMessage(await runSchedule(seed, { trace }));
  });
}
