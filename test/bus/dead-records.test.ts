/** What a job that was killed has left in the store binds nobody who is launched in its place; what a rank says is not lost. */
import { expect, test } from "vitest";
import { RoundLog } from "../../src/bus/batch/round-log.ts";
import { PairMeeting } from "../../src/bus/pair/meeting.ts";
import { Presence } from "../../src/bus/pair/presence.ts";
import { sideRecordKey } from "../../src/bus/pair/records.ts";
import { Rendezvous, recordVersion } from "../../src/bus/pair/rendezvous.ts";
import { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Store } from "../../src/store/store.ts";

test("a side of a dead leader is not taken for the one that is being formed, though this rank was in it", async () => {
  const stores = memoryStores();
  const stop = new AbortController();
  const old = {
    version: recordVersion,
    leader: 2,
    generation: 1n,
    remote: "A",
    ranks: [2, 3],
    nonces: [5n, 6n],
  };
  await new Rendezvous(stores()).publish(sideRecordKey("pair", "B"), old, {});
  // The job is launched again, and its side B is ranks 1 and 2 by now.
  const ranks = [
    { rank: 0, local: "A", remote: "B", worldSize: 1 },
    { rank: 1, local: "B", remote: "A", worldSize: 2 },
    { rank: 2, local: "B", remote: "A", worldSize: 2 },
  ];
  const meet = async ({ rank, ...spec }: (typeof ranks)[number]) => {
    const [store, answering] = [stores(), new Rendezvous(stores())];
    const asking = new Rendezvous(rank === 2 ? watched(store) : store);
    const presence = new Presence(answering, { rank, generation: 2n });
    await presence.claim(undefined, {});
    void presence.answer(stop.signal).catch(() => {});
    const meeting = new PairMeeting(asking, { rank, generation: 2n }, { pair: "pair", ...spec });
    return (await meeting.meet(new Deadline({ timeoutMs: 20_000 }))).local.ranks;
  };
  // Rank 2 comes first: the record of the dead is all that it finds.
  let find = () => {};
  const found = new Promise<void>((resolve) => {
    find = resolve;
  });
  const watched = (store: Store) => {
    const { get } = store;
    store.get = async (key, options) => {
      const bytes = await get.call(store, key, options);
      if (key === sideRecordKey("pair", "B")) find();
      return bytes;
    };
    return store;
  };
  const last = meet(ranks[2]!);
  await found;
  expect(await Promise.all([meet(ranks[0]!), meet(ranks[1]!), last])).toEqual([[0], [1, 2], [1, 2]]);
  stop.abort();
});

test("an end that a rank says while the store stalls stands in the log, whoever wrote meanwhile, and though it was closed", async () => {
  const stores = memoryStores();
  const [own, other] = [stores(), stores()];
  const { compareAndSet } = own;
  let stalls = true;
  own.compareAndSet = async (...rest) => {
    if (!stalls) return compareAndSet.apply(own, rest);
    stalls = false;
    // Another rank's entry comes first, once the store goes on; the answer to this try never comes.
    await logOf(other).appendFailed({ from: "A", round: 1, rank: 0, code: "TB_TIMEOUT" });
    throw new TensorBusError("TB_TIMEOUT", "compare and set took longer than 2000 ms");
  };
  const log = logOf(own);
  const end = {
    rank: 1,
    code: "TB_CLIENT_LOST",
    message: "a client of rank 1 has ended",
    details: {},
    retry: true,
    through: {},
  };
  const said = log.appendEnd(end);
  log.close();
  await said;
  const reader = logOf(other);
  await reader.sync(new Deadline());
  expect(reader.length).toBe(2);
  expect(reader.end).toMatchObject({ rank: 1, code: "TB_CLIENT_LOST" });
});

function logOf(store: Store): RoundLog {
  return new RoundLog({
    store,
    prefix: "log",
    onFault: (error) => {
      throw error;
    },
  });
}
