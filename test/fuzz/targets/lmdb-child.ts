/** Opens a state's folder in a process of its own, reads all that is in it, and writes. */
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { pack } from "../../../src/bus/queue/commands.ts";
import { keyOf, rangeOf } from "../../../src/bus/queue/environment.ts";
import { openState } from "../../../src/bus/queue/state.ts";
import { TensorBusError } from "../../../src/errors.ts";

async function use({ path, make }: { path: string; make: boolean }): Promise<void> {
  await using port = openEventPort();
  await using state = await openState({ path, port });
  const { root } = state.environment;
  state.agent();
  state.read(() => {
    for (const { value } of root.getRange(rangeOf(2)))
      if (value.length === 0) throw new Error("an empty record");
  });
  await state.write("a record", () => {
    for (let record = 0n; record < (make ? 60n : 1n); record += 1n) {
      root.put(keyOf(2, record, 1n), pack({ record, text: "x".repeat(Number(record) * 40) }));
    }
  });
}

process.on("message", async (asked: { path: string; make: boolean }) => {
  let error: string | undefined;
  try {
    await use(asked);
  } catch (cause) {
    if (!(cause instanceof TensorBusError)) error = String((cause as Error).stack ?? cause);
  }
  process.send!({ error });
});
process.on("disconnect", () => process.exit());
