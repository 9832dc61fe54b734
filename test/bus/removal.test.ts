/** What registrations have left in the store goes, in whatever moment a removal before was cut short. */
import { expect, test } from "vitest";
import { MemoryTurn } from "../../src/bus/batch/memory-turn.ts";
import { BatchKeys, testimonyKey, withdrawalKey } from "../../src/bus/batch/records.ts";
import { forgetEnded, leaveAttempt } from "../../src/bus/batch/removal.ts";
import { RoundLog } from "../../src/bus/batch/round-log.ts";
import { forgetRounds, markTidied, roundKey } from "../../src/bus/batch/round-records.ts";
import { StagedCommit } from "../../src/bus/batch/staged-commit.ts";
import { Rendezvous } from "../../src/bus/pair/rendezvous.ts";
import { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Store } from "../../src/store/store.ts";

const keys = new BatchKeys("model");
const roster = { sides: ["A", "B"], ranks: [0, 1, 2] };
const onFault = () => {};

/** A store that knows which keys stand, and ends after so many deletions. */
function watchedStore(): { readonly store: Store; readonly standing: Set<string>; endAfter: number } {
  const store = memoryStores()();
  const standing = new Set<string>();
  const watched = { store, standing, endAfter: Number.POSITIVE_INFINITY };
  const { set, add, compareAndSet, delete: remove } = store;
  Object.assign(store, {
    set: (key: string, ...rest: unknown[]) => set.call(store, standing.add(key) && key, ...(rest as [never])),
    add: (key: string, ...rest: unknown[]) => add.call(store, standing.add(key) && key, ...(rest as [never])),
    compareAndSet: (key: string, ...rest: unknown[]) =>
      compareAndSet.call(store, standing.add(key) && key, ...(rest as [never, never])),
    delete: (key: string, ...rest: unknown[]) => {
      if (watched.endAfter-- <= 0) return Promise.reject(new TensorBusError("TB_STORE_LOST", "it has ended"));
      standing.delete(key);
      return remove.call(store, key, ...(rest as []));
    },
  });
  return watched;
}

/** A registration of 30 completed rounds, of which those up to 23 are tidied, and one that failed far ahead of them. */
async function writeAttempt(store: Store, number: number): Promise<void> {
  const rest = () => new Deadline();
  const rendezvous = new Rendezvous(store);
  for (const side of roster.sides) {
    const prefix = keys.rounds(number, side);
    for (let round = 1; round <= 23; round++) await markTidied(store, prefix, round, rest());
    for (let round = 24; round <= 31; round++) {
      for (const what of ["posted", "state", "named", "votes", "decision"] as const)
        await store.set(roundKey(prefix, round, what), Buffer.from("x"));
    }
    for (const rank of roster.ranks) await store.set(keys.rank(number, side, rank), Buffer.from("x"));
    // Longer than a value of the store may be, so that it stands in parts.
    await rendezvous.publish(keys.names(number, side), "x".repeat(600 * 1024), {});
  }
  await store.set(roundKey(keys.rounds(number, "A"), 60, "posted"), Buffer.from("x"));
  await store.add(keys.prepared(number), 3n);
  await store.set(keys.ready(number), Buffer.from("x"));
  await store.set(keys.waiting(number), Buffer.from("x"));
  const log = new RoundLog({ store, prefix: keys.log(number), onFault });
  await log.appendFailed({ from: "A", round: 60, rank: 1, code: "TB_TIMEOUT" });
  await log.appendEnd({
    rank: 1,
    code: "TB_PEER_LOST",
    message: "gone",
    details: {},
    retry: true,
    through: {},
  });
}

const optionsOf = (store: Store) => ({ rendezvous: new Rendezvous(store), keys, rank: 0, onFault });

test("the last rank that leaves a registration removes it, with rounds that failed before it knew of them", async () => {
  const { store, standing } = watchedStore();
  await writeAttempt(store, 1);
  for (const rank of roster.ranks) {
    expect(standing.size).toBeGreaterThan(10);
    const left = { ...roster, number: 1, written: Promise.resolve() };
    await leaveAttempt({ ...optionsOf(store), rank }, left, new Deadline());
  }
  expect([...standing]).toEqual([keys.latest]);
});

test("rounds are found that others were in: before those that this rank has completed, and behind the last that it knows of", async () => {
  for (const tidied of [0, 40]) {
    const { store, standing } = watchedStore();
    const prefix = keys.rounds(1, "A");
    for (let round = 1; round <= tidied; round++) await markTidied(store, prefix, round, new Deadline());
    for (const round of [1, 290, 303])
      await store.set(roundKey(prefix, tidied + round, "votes"), Buffer.from("x"));
    await forgetRounds(store, prefix, tidied + 300, new Deadline());
    expect([...standing]).toEqual([]);
  }
});

test("a rank says that it has left once all that it said of rounds has come to the store", async () => {
  const store = memoryStores()();
  const order: string[] = [];
  const { add } = store;
  store.add = (key, ...rest) => {
    order.push(key);
    return add.call(store, key, ...rest);
  };
  let resolve = () => {};
  const written = new Promise<void>((resolveWritten) => (resolve = resolveWritten));
  const left = { ...roster, number: 1, written };
  const leaving = leaveAttempt(optionsOf(store), left, new Deadline());
  order.push("written");
  resolve();
  await leaving;
  expect(order).toEqual(["written", keys.left(1)]);
});

test("a removal may be cut short at any moment: the next one finds what is left, of all registrations", async () => {
  let isWhole = false;
  for (let endAfter = 0; !isWhole; endAfter += 23) {
    const watched = watchedStore();
    const { store, standing } = watched;
    for (const number of [1, 2, 3]) await writeAttempt(store, number);
    watched.endAfter = endAfter;
    await forgetEnded(optionsOf(store), 3, roster, new Deadline()).then(
      () => (isWhole = true),
      () => {},
    );
    watched.endAfter = Number.POSITIVE_INFINITY;
    await writeAttempt(store, 4);
    await forgetEnded(optionsOf(store), 4, roster, new Deadline());
    expect([...standing], `after ${endAfter} deletions`).toEqual([keys.latest]);
  }
});

/** A store that counts its deletions, and how often there was nothing under way when something was asked. */
function countedStore() {
  const store = memoryStores()();
  const counted = { store, deletions: 0, exchanges: 0 };
  let underWay = 0;
  for (const name of ["get", "set", "add", "compareAndSet", "delete"] as const) {
    const call = store[name] as (...argv: unknown[]) => Promise<unknown>;
    const asked = async (...argv: unknown[]) => {
      if (underWay++ === 0) counted.exchanges += 1;
      if (name === "delete") counted.deletions += 1;
      try {
        return await call.apply(store, argv);
      } finally {
        underWay -= 1;
      }
    };
    Object.assign(store, { [name]: asked });
  }
  return counted;
}

test("the rounds of a thousand ranks take no exchange each", async () => {
  const counted = countedStore();
  const prefix = keys.rounds(1, "A");
  await forgetRounds(counted.store, prefix, 3000, new Deadline());
  expect(counted.exchanges).toBeLessThan(3000 / 10);
  for (let round = 1; round <= 1000; round++)
    await counted.store.set(roundKey(prefix, round, "posted"), Buffer.from("x"));
  counted.exchanges = 0;
  await forgetRounds(counted.store, prefix, 1, new Deadline());
  expect(counted.exchanges).toBeLessThan(1000 / 5);
  expect(await counted.store.get(roundKey(prefix, 1, "posted"))).toBeUndefined();
});

test("what voters have testified is taken back by as many removals as there are voters, of those too that have ended", async () => {
  const counted = countedStore();
  const rendezvous = new Rendezvous(counted.store);
  const voters = Array.from({ length: 64 }, (_, rank) => rank);
  const commits = voters.map(
    (rank) =>
      new StagedCommit({
        ...{
          connection: { rendezvous, life: "one" },
          prefix: "rounds",
          registration: "r",
          from: "A",
          rank,
          voters,
        },
        ...{ shadow: undefined, tensors: [], turn: new MemoryTurn(), letGo: () => {}, tell: () => {} },
      }),
  );
  await Promise.all(commits.map((commit) => commit.testify({ rendezvous, life: "two" }, new Deadline())));
  // Some have ended since.
  await Promise.all(commits.slice(5).map((commit) => commit.withdraw(rendezvous, new Deadline())));
  for (const rank of voters) expect(await counted.store.get(testimonyKey("r", "A", rank))).toBeUndefined();
  expect(await counted.store.get(withdrawalKey("r", "A"))).toBeUndefined();
  expect(counted.deletions).toBeLessThanOrEqual(2 * voters.length + 1);
});
