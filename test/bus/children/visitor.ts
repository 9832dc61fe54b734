/** A client of a folder that may be another namespace's: says on stdout how connecting ended, and how long that took. */
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import { TensorBusError } from "../../../src/errors.ts";

interface Options {
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
  readonly timeoutMs: number;
}

const { timeoutMs, ...paths } = JSON.parse(process.argv[2]!) as Options;
const began = performance.now();
let outcome: Record<string, unknown> = { code: "none" };
try {
  const client = await TensorBusClient.connect({ agentRank: 0, ...paths, connectionTimeoutMs: timeoutMs });
  await client.close();
} catch (error) {
  outcome =
    error instanceof TensorBusError ? { code: error.code, message: error.message } : { code: String(error) };
}
console.log(JSON.stringify({ ...outcome, ms: performance.now() - began }));
