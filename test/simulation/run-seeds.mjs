// Runs the seeds of a range in threads, each in a world of its own.
import { Worker } from "node:worker_threads";

/** Seeds that a thread gets at a time: so few that all threads are done at about the same moment. */
const portion = 20;
/**
 * Seeds of a thread's life. It takes some hundred schedules until code is compiled and inputs are planned, which stay with the
 * thread; what is remembered of them must not grow for ever.
 */
const lifetime = 20_000;

/** Promises live for a moment: with room for more of them, most have ended before anybody looks for garbage. */
const resourceLimits = { maxYoungGenerationSizeMb: 64 };

/** `onReport` is told of every schedule; false ends it. Rejects where a thread fails. */
export async function runSeeds(bundle, { first, runs, jobs, trace = false, onReport }) {
  const end = first + runs;
  let next = first;
  let goesOn = true;
  const isLeft = () => goesOn && next < end;
  const runThread = () =>
    new Promise((resolve, reject) => {
      const worker = new Worker(bundle, { workerData: { trace }, resourceLimits });
      let given = 0;
      let awaited = 0;
      const give = () => {
        const seeds = { from: next, to: Math.min(next + portion, end) };
        next = seeds.to;
        awaited = seeds.to - seeds.from;
        given += awaited;
        worker.postMessage(seeds);
      };
      worker.on("message", (report) => {
        goesOn &&= onReport(report) !== false;
        awaited -= 1;
        if (!goesOn) void worker.terminate();
        else if (awaited === 0 && isLeft() && given < lifetime) give();
        else if (awaited === 0) worker.postMessage(undefined);
      });
      worker.on("error", reject);
      // Seeds that nobody runs would pass as if they had been.
      worker.on("exit", (code) => {
        if (goesOn && awaited > 0)
          reject(new Error(`a thread ended (${code}), and owed ${awaited} schedules`));
        else resolve();
      });
      give();
    });
  const work = async () => {
    while (isLeft()) await runThread();
  };
  await Promise.all(Array.from({ length: jobs }, work));
}
