/**
 * A process of the bus whose files somebody else cuts: it queues commands, takes them off and reads without a pause, in one
 * folder after the other, or asks an agent again and again, and tells how each ended. `unguarded`: without the handler of
 * SIGBUS.
 */
import { join } from "node:path";
import { openEventPort } from "../../../src/bus/process/event-port.ts";
import { momentIn, ownIdentity, randomClientId } from "../../../src/bus/process/identity.ts";
import { clientOffset, tryLock } from "../../../src/bus/process/liveness.ts";
import { generateSemaphoreName, openWaker } from "../../../src/bus/process/semaphore.ts";
import { openCommandQueue } from "../../../src/bus/queue/command-queue.ts";
import type { Command } from "../../../src/bus/queue/commands.ts";
import { openState } from "../../../src/bus/queue/state.ts";
import { type BusPaths, EchoClient } from "./echo-client.ts";

type Options =
  | { readonly folder: string; readonly cases: number; readonly unguarded: boolean }
  | { readonly ask: BusPaths };

const options = JSON.parse(process.argv[2]!) as Options;
const port = openEventPort();
const waker = openWaker(port);
const client = { ...ownIdentity(), id: randomClientId(), wake: waker.name };
let lastId = 100n;

const codeOf = (error: unknown) => {
  const { code } = error as { code?: unknown };
  return code === "TB_BUS_FORMAT" ? code : String((error as Error).stack);
};

function makeCommand(): Command {
  lastId += 1n;
  // Some take pages of their own.
  const batch = "b".repeat(lastId % 7n === 0n ? 230 : 20);
  return {
    type: "QueryStatus",
    id: lastId,
    timestamp: Date.now(),
    semaphore: generateSemaphoreName("QueryStatus", batch),
    client,
    deadline: momentIn(30_000),
    acknowledged: Array.from({ length: lastId % 11n === 0n ? 400 : 1 }, (_, i) => BigInt(i)),
    batch,
  };
}

/** Until it fails: how. */
async function use(path: string, unguarded: boolean): Promise<string> {
  const queue = await openCommandQueue({ path: join(path, "queue"), port });
  const state = await openState({ path: join(path, "state"), port });
  if (unguarded) {
    // Node.js puts the default back when its last listener goes.
    const listener = () => {};
    process.on("SIGBUS", listener).off("SIGBUS", listener);
  }
  const life = tryLock(queue.environment.locksPath, clientOffset(client.id))!;
  try {
    await queue.register(client);
    for (let i = 0; ; i++) {
      for (let n = 0; n < 5; n++) await queue.enqueue(makeCommand(), waker);
      queue.size();
      const { started, dropped } = await queue.dequeue(4 + (i % 3));
      const positions = [...started, ...dropped].map(({ position }) => position);
      await state.write("results", () => {
        for (const { header } of started)
          state.putResult(client.id, header.id, { ok: true, value: [i, "done"] });
        state.removeResults(
          client.id,
          started.map(({ header }) => header.id - 40n),
        );
      });
      for (const { header } of started) state.result(client.id, header.id);
      await queue.finish(positions);
      if (i === 20) process.send?.({ using: path });
    }
  } catch (error) {
    return codeOf(error);
  } finally {
    life.close();
    await state.close();
    await queue.close();
  }
}

/** Until it fails: answers are read as they come, so that their failure may be nobody's call. */
async function ask(paths: BusPaths): Promise<void> {
  const asking = await EchoClient.connect(paths);
  const end = (error: unknown) => {
    asking.waker.close();
    process.send?.({ ended: codeOf(error) }, () => process.exit(0));
  };
  process.once("uncaughtException", end);
  try {
    for (let i = 0; ; i++) {
      await asking.query("batch");
      if (i === 20) process.send?.({ using: paths.queue });
    }
  } catch (error) {
    end(error);
  }
}

if ("ask" in options) await ask(options.ask);

if ("cases" in options) {
  for (let i = 0; i < options.cases; i++) {
    const ended = await use(join(options.folder, String(i)), options.unguarded);
    process.send?.({ ended });
  }
}
waker.close();
await port.close();
process.disconnect?.();
