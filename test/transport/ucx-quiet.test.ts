/** A source that stops in the midst of being read: what was asked of it is cut off, and never lands. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { setImmediate } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { createExecutor, type Execution } from "../../src/exec/executor.ts";
import { HostMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { serveTcpStore, tcpStore } from "../../src/store/index.ts";
import { ucx } from "../../transports/ucx/index.ts";
import type { OneToOneSetup } from "./children/one-to-one.ts";
import { bundleChild } from "./kit/children.ts";
import { oneToOne } from "./kit/one-to-one.ts";
import { ucxVersion } from "./kit/ucx.ts";

const bytes = 64 * 2 ** 20;
const value = 0x5a;
const untouched = 0x33;
const tries = 5;

describe.skipIf(ucxVersion === undefined)("a source that stops while it is read", () => {
  test("its target's memory is quiet in time, and stays so; the next round works", async () => {
    const options = { transports: "tcp,self", peerTimeoutMs: 600_000, quiesceMs: 4000 };
    await using store = await serveTcpStore();
    const child = fork(bundleChild("one-to-one"), { stdio: "inherit" });
    const ask = async (message: OneToOneSetup | { kind: "post" }): Promise<unknown> => {
      child.send(message);
      return (await once(child, "message"))[0];
    };
    try {
      const place = { host: "127.0.0.1", port: store.port };
      const session = await ucx(options).open({ rank: 1, world: 2, store: await tcpStore(place) });
      const memory = HostMemory.allocate(bytes);
      const view = memory.view(Uint8Array, 0n, bytes);
      session.register(memory);
      const ready = ask({ kind: "prepare", rank: 0, store: place, bytes, value, options });
      const tensors = new Map([[0, { target: { memory, offset: 0n } }]]);
      const plan = await planTransfer(oneToOne(bytes));
      const execution = await createExecutor(session).prepare(plan, { key: "one", tensors });
      expect(await ready).toBe("prepared");

      let stopped = false;
      for (let attempt = 0; attempt < tries && !stopped; attempt++) {
        view.fill(untouched);
        const sent = ask({ kind: "post" });
        stopped = await stopMidway(execution, () => child.kill("SIGSTOP"), view);
        if (stopped) view.fill(untouched);
        child.kill("SIGCONT");
        expect(await sent).toBe(stopped ? "TB_CANCELLED" : "done");
      }
      expect(stopped, "the source was stopped while it was read").toBe(true);
      expect(view.includes(value)).toBe(false);

      const sent = ask({ kind: "post" });
      await execution.run();
      expect(await sent).toBe("done");
      expect(view.includes(untouched)).toBe(false);
      await session.close();
    } finally {
      child.kill("SIGKILL");
    }
  });
});

/** Runs a round whose source stops once some of it has come. False if all of it came all the same. */
async function stopMidway(execution: Execution, stop: () => void, view: Uint8Array): Promise<boolean> {
  const run = execution.run({ timeoutMs: 1000 });
  let over = false;
  const outcome = run.then(
    () => "done",
    (error) => error.code as string,
  );
  outcome.then(() => {
    over = true;
  });
  while (!over && view[0] === untouched) await setImmediate();
  stop();
  const code = await outcome;
  expect(["done", "TB_TIMEOUT"]).toContain(code);
  return code === "TB_TIMEOUT";
}
