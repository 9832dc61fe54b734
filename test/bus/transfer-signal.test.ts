/** What announces a round may come to the store after the records of that round were removed: it goes all the same. */
import { expect, test } from "vitest";
import { roundKey } from "../../src/bus/batch/round-records.ts";
import { TransferSignal } from "../../src/bus/batch/transfer-signal.ts";
import { Deadline } from "../../src/deadline.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Store } from "../../src/store/store.ts";

const prefix = "rounds";
const within = () => new Deadline();

/** A client of the store whose announcements wait on their way until they are let go on. */
function heldStore(store: Store, held: "add" | "compareAndSet") {
  let goOn = () => {};
  const going = new Promise<void>((resolve) => (goOn = resolve));
  const deleted: string[] = [];
  const client = new Proxy(store, {
    get(target, name) {
      const member = Reflect.get(target, name);
      if (typeof member !== "function") return member;
      return async (...argv: unknown[]) => {
        if (name === held) await going;
        if (name === "delete") deleted.push(String(argv[0]));
        return member.apply(target, argv);
      };
    },
  });
  return { client, deleted, goOn };
}

function signalOf(store: Store, sources: number, margin: 1 | 2): TransferSignal {
  return new TransferSignal({ store, prefix, sources, margin, onFault: () => {}, onReady: () => {} });
}

const standing = async (store: Store) => {
  const keys = (["posted", "state"] as const).map((what) => roundKey(prefix, 1, what));
  const values = await Promise.all(keys.map((key) => store.get(key)));
  return keys.filter((_, index) => values[index] !== undefined);
};

test("the rank that removes records removes its own announcement that comes later", async () => {
  const store = memoryStores()();
  const { client, goOn } = heldStore(store, "compareAndSet");
  const signal = signalOf(client, 1, 2);
  const said = signal.announce(1, undefined, within());
  await signal.forget(1, within());
  const forgotten = signal.forgetLate(1, within);
  goOn();
  await said;
  await forgotten;
  expect(await standing(store)).toEqual([]);
  signal.close();
});

test.each([1, 2] as const)("a rank whose part came too late removes it %i rounds later", async (margin) => {
  const store = memoryStores()();
  const { client, goOn } = heldStore(store, "add");
  const first = signalOf(store, 2, margin);
  const second = signalOf(client, 2, margin);
  await first.announce(1, undefined, within());
  const said = second.announce(1, undefined, within());
  second.follow(1 + margin);
  await first.forget(1, within());
  goOn();
  await said;
  expect(await standing(store)).toEqual([roundKey(prefix, 1, "posted")]);
  await second.forgetLate(1, within);
  expect(await standing(store)).toEqual([]);
  first.close();
  second.close();
});

test("what came in time is left to the rank that removes all", async () => {
  const { client, deleted, goOn } = heldStore(memoryStores()(), "add");
  goOn();
  const signal = signalOf(client, 1, 2);
  await signal.announce(1, undefined, within());
  signal.follow(2);
  await signal.announce(2, undefined, within());
  await signal.forgetLate(2, within);
  expect(deleted).toEqual([]);
  signal.close();
});
