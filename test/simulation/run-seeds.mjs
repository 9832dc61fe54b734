// Runs the seeds of a range in threads, each in a world of its own.
import { Worker } from "node:worker_threads";

/** Seeds that a thread gets at a time: planned inputs and compiled code stay with it. */
const portion = 1000;

/** Promises live for a moment: with room for more of them, most have ended before anybody looks for garbage. */
const resourceLimits = { maxYoungGenerationSizeMb: 64 };

/** `onReport` is told of every schedule; false ends it. Rejects where a thread fails. */
export async function runSeeds(bundle, { first, runs, jobs, trace = false, onReport }) {
  let next = first;
  let goesOn = true;
  const work = async () => {
    while (goesOn && next < first + runs) {
      const count = Math.min(portion, first + runs - next);
      const seeds = Array.from({ length: count }, (_, index) => next + index);
      next += count;
      await runPortion(seeds);
    }
  };
  const runPortion = (seeds) =>
    new Promise((resolve, reject) => {
      const worker = new Worker(bundle, { workerData: { seeds, trace }, resourceLimits });
      worker.on("message", (report) => {
        if (!goesOn) return;
        goesOn = onReport(report) !== false;
        if (!goesOn) void worker.terminate();
      });
      worker.on("error", reject);
      worker.on("exit", resolve);
    });
  await Promise.all(Array.from({ length: jobs }, work));
}
