/** The agent's side of the queue, in one process with its client: whatever ends is told, whenever that is. */
import { setImmediate as nextLoop } from "node:timers/promises";
import { expect, it } from "vitest";
import { CommandPump } from "../../src/bus/agent/pump.ts";
import { TensorBusError } from "../../src/errors.ts";
import { EchoClient } from "./children/echo-client.ts";
import { freshPaths } from "./kit/processes.ts";

/** More microtasks than lie between the end of a command and the end of the wait for its answer to be written. */
const steps = 30;

async function afterSteps(count: number): Promise<void> {
  for (let step = 0; step < count; step++) await undefined;
}

it("answers what ends while other answers are written, and tells what it is told then", async () => {
  const client = await EchoClient.connect(freshPaths());
  const { queue, state, waker, identity } = client;
  let end!: () => void;
  const ending = new Promise<void>((resolve) => {
    end = resolve;
  });
  const faults: unknown[] = [];
  const closed = new TensorBusError("TB_BATCH_UNKNOWN", "the batch was closed");
  const pump = new CommandPump({
    queue,
    state,
    waker,
    onFault: (fault) => faults.push(fault),
    run: async ({ id }) => {
      await ending;
      await afterSteps(Number(id));
      pump.tell([{ client: identity, id: id + 1000n, error: closed }]);
    },
  });
  for (let step = 1; step <= steps; step++) await client.send(client.makeCommand(step));
  pump.wake();
  while (queue.size() > 0) await nextLoop();
  end();
  await nextLoop();
  await pump.close();
  const told = state.results(identity.id).map(([id]) => Number(id));
  const expected = Array.from({ length: steps }, (_, step) => step + 1);
  expect(told).toEqual([...expected, ...expected.map((id) => id + 1000)]);
  expect(queue.leftovers()).toEqual([]);
  expect(faults).toEqual([]);
  await client.close();
});
