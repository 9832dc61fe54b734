/** Fills the file system of a folder of the bus by writing to it, frees some, and goes on: tells what the writes ended with. */
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { keyOf, openEnvironment } from "../../../src/bus/queue/environment.ts";
import { TensorBusError } from "../../../src/errors.ts";

const { path, rounds } = JSON.parse(process.argv[2]!) as { path: string; rounds: number };
const port = openEventPort();
const codes: Record<string, number> = {};

let state = 7;
function below(limit: number): number {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  return Math.floor((state / 2 ** 32) * limit);
}

async function outcomeOf(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
    return "none";
  } catch (error) {
    return error instanceof TensorBusError ? error.code : String(error);
  }
}

const environment = await openEnvironment({ path, kind: "queue", port });
for (let round = 0; round < rounds; round++) {
  const code = await outcomeOf(() =>
    environment.write("a write", () => {
      const count = 1 + below(12);
      for (let i = 0; i < count; i++) {
        const bytes = below(3) === 0 ? below(20_000) : below(500);
        environment.root.put(keyOf(1, BigInt(below(300))), Buffer.alloc(bytes, 1));
      }
    }),
  );
  codes[code] = (codes[code] ?? 0) + 1;
  if (code === "none" || below(3) > 0) continue;
  // One at a time finds room where nothing else does.
  for (let i = 0; i < 300; i++) {
    if (below(2) === 0)
      await environment.write("making room", () => environment.root.remove(keyOf(1, BigInt(i))));
  }
}
await environment.close();
process.send?.(codes);
await port.close();
