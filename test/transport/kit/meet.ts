/** Ranks of one process, each with a transport of its own, and what two of them take. */
import { createExecutor } from "../../../src/exec/executor.ts";
import { HostMemory } from "../../../src/memory/index.ts";
import { DeviceMesh, type PlanInput, planTransfer, Replicate, Shard } from "../../../src/plan/index.ts";
import { memoryStores } from "../../../src/store/memory-store.ts";
import type { Transport, TransportSession } from "../../../src/transport/transport.ts";

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
export async function meet(transports: readonly [Transport, Transport], checksum = false): Promise<string[]> {
  await using world = await openEach(transports);
  const plan = await planTransfer(input);
  const prepared = world.sessions.map((session, rank) => {
    const place = { memory: HostMemory.allocate(4096), offset: 0n };
    session.register(place.memory);
    const tensors = new Map([[0, rank === 0 ? { source: place } : { target: place }]]);
    return createExecutor(session).prepare(plan, { key: "one", checksum, tensors });
  });
  const ended = await Promise.allSettled(prepared);
  return ended.map((one, rank) =>
    one.status === "fulfilled" ? one.value.stats.peers.get(1 - rank)!.transport : String(one.reason),
  );
}
