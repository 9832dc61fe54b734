/** Ranks of one process, each with a transport of its own, and what two of them take. */
import { createExecutor } from "../../../src/exec/executor.ts";
import { DeviceMesh, type PlanInput, planTransfer, Replicate, Shard } from "../../../src/plan/index.ts";
import { memoryStores } from "../../../src/store/memory-store.ts";
import type { Transport, TransportSession } from "../../../src/transport/transport.ts";
import { allocate, type TestMemoryKind, testDevices } from "./test-memory.ts";

/** Sessions of ranks that each have a transport of their own. */
export async function openEach(transports: readonly Transport[]) {
  const stores = memoryStores();
  const world = transports.length;
  const sessions: TransportSession[] = [];
  for (const [rank, transport] of transports.entries()) {
    sessions.push(await transport.open({ rank, world, store: stores() }));
  }
  return {
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) await session.close();
    },
  };
}

const input: PlanInput = {
  pairs: {
    weights: {
      source: { mesh: new DeviceMesh([1], { ranks: [0] }), placements: [Replicate()] },
      target: { mesh: new DeviceMesh([1], { ranks: [1] }), placements: [Shard(0)] },
    },
  },
  tensors: [{ name: "a", pair: "weights", shape: [64], dtype: "float32" }],
};

/** What each of two ranks that prepare a small tensor says of the other: its transport, or why there is none. */
export function meet(transports: readonly [Transport, Transport], checksum = false): Promise<string[]> {
  return meetOn(transports, ["host", "host"], checksum);
}

/** The same with tensors in that memory. */
export async function meetOn(
  transports: readonly [Transport, Transport],
  kinds: readonly [TestMemoryKind, TestMemoryKind],
  checksum = false,
): Promise<string[]> {
  await using world = await openEach(transports);
  const plan = await planTransfer(input);
  const prepared = world.sessions.map((session, rank) => {
    const place = { memory: allocate(kinds[rank]!, 4096, testDevices.of(rank)).memory, offset: 0n };
    session.register(place.memory);
    const tensors = new Map([[0, rank === 0 ? { source: place } : { target: place }]]);
    return createExecutor(session).prepare(plan, { key: "one", checksum, tensors });
  });
  const ended = await Promise.allSettled(prepared);
  return ended.map((one, rank) =>
    one.status === "fulfilled" ? one.value.stats.peers.get(1 - rank)!.transport : String(one.reason),
  );
}
