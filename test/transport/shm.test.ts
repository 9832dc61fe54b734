import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { type ShmTransportOptions, shm } from "../../transports/shm/index.ts";
import { testTransport } from "./compliance.ts";
import type { World } from "./world.ts";

async function openShm(world: number, options: ShmTransportOptions = {}): Promise<World> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    sessions.push(await shm(options).open({ rank, world, store: stores() }));
  }
  return {
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) await session.close();
    },
  };
}

testTransport({
  name: "shm",
  capabilities: shm().capabilities,
  open: openShm,
  openOne: (options) => shm().open({ ...options, store: memoryStores()() }),
});
