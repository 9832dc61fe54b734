/**
 * `npm run bench:gpu`: each transfer between two ranks on one GPU beside the driver's own copy of the
 * same bytes, device to device, in the same run. A cast's floor is the time that its bytes, read and written,
 * take at the speed of that copy. A case that cannot run here says why, and has no figures; one that fails
 * takes none from the others.
 */
import { TensorBusError } from "../../src/errors.ts";
import { ncclVersion } from "../../src/ffi/nccl.ts";
import { findMachine, Skip, writeResults } from "../../test/gpu/machine.ts";
import { cases } from "./cases.ts";
import { type Figures, measure } from "./measure.ts";

type Result = { readonly name: string } & (
  | ({ readonly outcome: "measured" } & Figures)
  | { readonly outcome: "skipped" | "failed"; readonly why: string }
);

const machine = findMachine("bench");
const results: Result[] = [];
for (const one of cases.filter(({ name }) => name.includes(machine.filter))) {
  let result: Result;
  try {
    result = { name: one.name, outcome: "measured", ...(await measure(machine, one)) };
  } catch (error) {
    const outcome = error instanceof Skip ? "skipped" : "failed";
    result = { name: one.name, outcome, why: (error as Error).message };
  }
  results.push(result);
  console.log(`${result.name.padEnd(40)} ${describe(result)}`);
}
writeResults(machine, { nccl: ncclOrNull(), results });
process.exit(results.some(({ outcome }) => outcome === "failed") ? 1 : 0);

function describe(result: Result): string {
  if (result.outcome !== "measured") return `${result.outcome}: ${result.why}`;
  const { gigabytesPerSecond, ofFloor, goal } = result;
  return (
    `${gigabytesPerSecond.toFixed(1)} GB/s moved, ${ofFloor.toFixed(3)} of its floor` +
    (goal > 0 ? ` (goal ${goal})` : "")
  );
}

function ncclOrNull(): string | null {
  try {
    return ncclVersion().text;
  } catch (error) {
    if (error instanceof TensorBusError && error.code === "TB_LIBRARY") return null;
    throw error;
  }
}
