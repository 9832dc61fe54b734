/** `npm run test:gpu`: what can be said only with a GPU. A case that cannot run here says why, and does not pass. */

import { kernelCases } from "./kernels.ts";
import { findMachine, outputOf, Skip, writeResults } from "./machine.ts";
import { ncclCases } from "./nccl.ts";
import { processCases } from "./processes.ts";

const machine = findMachine("test");
const results: { name: string; outcome: "passed" | "failed" | "skipped"; seconds: number; why?: string }[] =
  [];
const cases = [...kernelCases(machine), ...processCases(machine), ...ncclCases(machine.device)];
for (const { name, run } of cases.filter(({ name }) => name.includes(machine.filter))) {
  const begin = performance.now();
  let outcome: "passed" | "failed" | "skipped" = "passed";
  let why: string | undefined;
  try {
    await run();
  } catch (error) {
    outcome = error instanceof Skip ? "skipped" : "failed";
    why = (error as Error).message;
  }
  const seconds = (performance.now() - begin) / 1000;
  results.push({ name, outcome, seconds, ...(why === undefined ? {} : { why }) });
  console.log(`${outcome.padEnd(7)} ${name} (${seconds.toFixed(1)} s)${why === undefined ? "" : `: ${why}`}`);
}
const count = (outcome: string) => results.filter((result) => result.outcome === outcome).length;
writeResults(machine, {
  torch: outputOf("python3", ["-c", "import torch; print(torch.__version__)"]),
  results,
});
console.log(`${count("passed")} passed, ${count("failed")} failed, ${count("skipped")} skipped`);
process.exit(count("failed") > 0 ? 1 : 0);
