/**
 * The order in which ranks really ask for buckets, beside the order that the schedule counts on. Only the tests' own library
 * tells it.
 */
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { declareNative } from "../../src/ffi/native.ts";
import { decide } from "../../src/plan/input/decisions.ts";
import { normalize } from "../../src/plan/input/normalize.ts";
import type { PlanInput } from "../../src/plan/input/types.ts";
import { makeImage } from "../../src/plan/planner/image.ts";
import { bucketGraph } from "../../src/plan/planner/listing.ts";
import type { Subject } from "../../src/plan/planner/question.ts";
import { sumUp } from "../../src/plan/planner/stats.ts";
import { bucketJobs } from "../../src/plan/schedule/jobs.ts";
import { Turns } from "../../src/plan/schedule/turns.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { select } from "../../src/transport/selection.ts";
import type { Transport, TransportSession } from "../../src/transport/transport.ts";
import { memory } from "../../transports/memory/index.ts";
import { shm } from "../../transports/shm/index.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { type CaseOptions, randomCase } from "./compliance/cases.ts";
import { prepareCase } from "./compliance/world.ts";

const ranks = 6;
const stages = [1, 2] as const;

/** By rank and stage, the ranks whose buckets are asked for, in the order of the simulation. */
function foreseen(input: PlanInput): number[][][] {
  const normal = normalize(input);
  const decisions = decide(normal);
  const subject: Subject = { input: normal, image: makeImage(normal, decisions), table: undefined };
  const { channels } = sumUp(subject, decisions.routing);
  const { count, stage, srcRank, dstRank } = channels;
  const owners = new Set(Array.from(dstRank).filter((_, row) => stage[row] === 0));
  const asked = Array.from({ length: ranks }, () => stages.map((): number[] => []));
  const wiring = {
    outEnd: Int32Array.from({ length: count }, (_, row) => (srcRank[row] === dstRank[row] ? -1 : 0)),
    inEnd: new Int32Array(count),
    ends: 1,
    duration: new Float64Array(0),
    latency: 0,
    // All at once, so that all of the order is seen.
    inFlight: Number.MAX_SAFE_INTEGER,
    bucketBytes: normal.bucketBytes,
  };
  new Turns(channels, bucketJobs(channels, bucketGraph(subject)), wiring, (row) => {
    // Contributions are asked for by their folds, and what owners send without turns.
    if (stage[row] === 0 || owners.has(srcRank[row]!)) return;
    asked[dstRank[row]!]![stage[row]! - 1]!.push(srcRank[row]!);
  }).begin();
  return asked;
}

/** The native transfer of each native session, in the order of their opening. */
const natives = vi.hoisted(() => new Map<bigint, bigint | undefined>());

vi.mock("../../src/ffi/library.ts", async (load) => {
  const library = await load<typeof import("../../src/ffi/library.ts")>();
  const path = join(import.meta.dirname, "../../native/build/doubles/libtensorbus.so");
  return { ...library, libraryPath: () => path, openLibrary: () => library.openLibrary(path) };
});

vi.mock("../../src/ffi/session.ts", async (load) => {
  const real = await load<typeof import("../../src/ffi/session.ts")>();
  const openSession: typeof real.openSession = (options) => {
    const opened = real.openSession(options);
    natives.set(opened.session, undefined);
    return opened;
  };
  const prepareTransfer: typeof real.prepareTransfer = (session, options) => {
    const transfer = real.prepareTransfer(session, options);
    natives.set(session, transfer);
    return transfer;
  };
  return { ...real, openSession, prepareTransfer };
});

/** `native/test/library/asked.c` */
const tests = declareNative({
  test_transfer_asked: ["u64", "u64", "pointer", "pointer", "u32", "out u32"],
});

/** By stage, the ranks whose buckets were asked for in turns in the latest round. */
function askedOf(session: bigint, transfer: bigint): number[][] {
  const most = tests.test_transfer_asked(session, transfer, new Uint8Array(1), new Int32Array(1), 0);
  const [stageOf, rankOf] = [new Uint8Array(Math.max(1, most)), new Int32Array(Math.max(1, most))];
  tests.test_transfer_asked(session, transfer, stageOf, rankOf, most);
  return stages.map((stage) => [...rankOf.subarray(0, most)].filter((_, index) => stageOf[index] === stage));
}

/** The same, as it was asked for in a round of real sessions; and by what their buckets went. */
async function recorded(seed: number, options: CaseOptions, transportOf: (rank: number) => Transport) {
  natives.clear();
  const store = memoryStores()();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < ranks; rank++) {
    sessions.push(await transportOf(rank).open({ rank, world: ranks, store }));
  }
  const transfer = randomCase(seed, options);
  const prepared = await prepareCase(sessions, transfer);
  await prepared.round();
  const used = prepared.executions.flatMap(({ stats }) =>
    [...stats.peers.values()].map((peer) => peer.transport),
  );
  const asked = [...natives].map(([session, native]) => askedOf(session, native!));
  await prepared[Symbol.asyncDispose]();
  for (const session of sessions) await session.close();
  return { asked, used: new Set(used), input: transfer.input };
}

const topology = { hosts: [0, 0, 0, 1, 1, 1], hostMBps: 1000, networkMBps: 100, latencyUs: 0 };
const striped = { strategy: "striped", bucketBytes: 4096, bucketsInFlight: 1, peersInFlight: 1 } as const;

test("ranks ask in the order that the schedule is made with", { timeout: 60_000 }, async () => {
  const transport = memory();
  const kinds: readonly CaseOptions[] = [
    { options: striped, tensors: 5 },
    { options: { ...striped, topology }, tensors: 5 },
    { options: { ...striped, strategy: "auto", topology }, tensors: 5 },
    { options: striped, tensors: 4, partial: "sum" },
  ];
  let [several, handedOn] = [0, 0];
  for (const [kind, options] of kinds.entries()) {
    for (let seed = 2000 + kind * 100; seed < 2012 + kind * 100; seed++) {
      const { asked, input } = await recorded(seed, options, () => transport);
      expect(asked, `seed ${seed}`).toEqual(foreseen(input));
      several += asked.filter(([first]) => new Set(first).size > 1).length;
      handedOn += asked.filter(([, second]) => second!.length > 0).length;
    }
  }
  expect(Math.min(several, handedOn)).toBeGreaterThan(20);
});

/** The second host's ranks reach each other by shared memory; all else goes over TCP, as between hosts. */
const byHost = (rank: number) => (topology.hosts[rank] === 0 ? tcp() : select([shm(), tcp()]));

test("and where stripes come over TCP and are handed on by shared memory", { timeout: 60_000 }, async () => {
  let [both, handedOn] = [0, 0];
  for (const [kind, partial] of [undefined, "sum" as const].entries()) {
    for (let seed = 2600 + kind * 100; seed < 2606 + kind * 100; seed++) {
      const options = { options: { ...striped, topology }, tensors: 5, ...(partial && { partial }) };
      const { asked, used, input } = await recorded(seed, options, byHost);
      expect(asked, `seed ${seed}`).toEqual(foreseen(input));
      if (used.has("tcp") && used.has("shm")) both++;
      handedOn += asked.slice(3).filter(([, second]) => second!.some((rank) => rank >= 3)).length;
    }
  }
  expect(Math.min(both, handedOn)).toBeGreaterThan(6);
});
