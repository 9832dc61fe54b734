import { setImmediate as yieldLoop } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { MemoryTurn } from "../../src/bus/batch/memory-turn.ts";
import { roundKey } from "../../src/bus/batch/round-records.ts";
import { StagedCommit } from "../../src/bus/batch/staged-commit.ts";
import type { AgentEvent, RoundIdentity } from "../../src/bus/pair/events.ts";
import { Rendezvous } from "../../src/bus/pair/rendezvous.ts";
import { pack } from "../../src/bus/queue/commands.ts";
import { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { HostMemory } from "../../src/memory/host-memory.ts";
import { memoryStores } from "../../src/store/memory-store.ts";

const prefix = "rounds";
const round: RoundIdentity = {
  ...{ batch: "model", pairs: ["pair"], number: 1, from: "A", to: "B", round: 1, epoch: 0 },
};
/** What is copied in one turn of the event loop. */
const slice = 32 * 2 ** 20;

const shadows: HostMemory[] = [];
afterEach(() => {
  for (const shadow of shadows.splice(0)) shadow.close();
});

/** A rank in doubt of a round that was committed: so many slices to the beginning of its target, then its last byte. */
async function inDoubt(slices: number) {
  const store = memoryStores()();
  const target = Buffer.alloc(slices > 0 ? slice + 1 : 1);
  const shadow = HostMemory.allocate(target.length);
  shadows.push(shadow);
  shadow.view(Uint8Array).fill(7);
  const memory = HostMemory.over(target);
  const tensorAt = (offset: number, bytes: number) => ({
    ...{ dtype: "uint8" as const, shape: [bytes], strides: [1], memory, offset: BigInt(offset) },
    shadowOffset: BigInt(offset),
  });
  const events: AgentEvent[] = [];
  const freed: number[] = [];
  const turn = new MemoryTurn();
  const commit = new StagedCommit({
    ...{
      connection: { rendezvous: new Rendezvous(store), life: "one" },
      prefix,
      registration: "r",
      from: "A",
    },
    ...{ rank: 0, voters: [0, 1], shadow, turn },
    tensors: [...Array.from({ length: slices }, () => tensorAt(0, slice)), tensorAt(target.length - 1, 1)],
    letGo: () => freed.push(target.at(-1)!),
    tell: (event) => events.push(event),
  });
  const { add } = store;
  store.add = () => Promise.reject(new TensorBusError("TB_STORE_LOST", "it is away"));
  const until = { deadline: new Deadline(), signal: new AbortController().signal, end: new Deadline() };
  await expect(commit.vote(round, until)).rejects.toMatchObject({ code: "TB_IN_DOUBT" });
  store.add = add;
  const decision = pack({ committed: true, nonce: Buffer.alloc(8) });
  await store.compareAndSet(roundKey(prefix, 1, "decision"), undefined, decision);
  return { commit, turn, target, events, freed };
}

test("what was in doubt is copied when no round of the other direction sends it, and before the next one does", async () => {
  const { commit, turn, target, events } = await inDoubt(0);
  turn.begin("B");
  const settled = [commit.resolve(new Deadline()), commit.resolve(new Deadline())];
  await expect(commit.resolve(new Deadline({ timeoutMs: 20 }))).rejects.toMatchObject({
    code: "TB_IN_DOUBT",
    message: expect.stringContaining("round 1 was committed, but its bytes are not in the tensors yet"),
  });
  expect(target[0]).toBe(0);
  turn.end("B");
  // A round of its own direction is no reason to wait.
  turn.begin("A");
  await Promise.all(settled);
  expect(target[0]).toBe(7);
  expect(events).toMatchObject([{ kind: "resolved", committed: true, round: 1 }]);
  expect(commit.inDoubt).toBeUndefined();
});

test("a round that begins while much is copied waits for all of it, and so does whoever gives the doubt up", async () => {
  const { commit, turn, target, events, freed } = await inDoubt(8);
  const settled = commit.resolve(new Deadline());
  while (target[0] === 0) await yieldLoop();
  expect(target.at(-1)).toBe(0);
  turn.begin("B");
  commit.close();
  expect(freed).toEqual([]);
  const waits = [turn.quiet(new Deadline()), commit.giveUp(new Deadline())];
  expect(await Promise.all(waits.map((wait) => wait.then(() => target.at(-1))))).toEqual([7, 7]);
  await settled;
  expect(events).toMatchObject([{ kind: "resolved", committed: true }]);
  expect(freed).toEqual([7]);
});

test("what is given up before its turn has come is not copied any more", async () => {
  const { commit, turn, target, events, freed } = await inDoubt(0);
  turn.begin("B");
  const settled = commit.resolve(new Deadline());
  await yieldLoop();
  commit.close();
  await commit.giveUp(new Deadline());
  turn.end("B");
  await settled;
  expect(target[0]).toBe(0);
  expect(events).toMatchObject([{ kind: "resolved", committed: undefined }]);
  expect(freed).toEqual([0]);
});
