import { memoryStores } from "../../src/store/memory-store.ts";
import { checkTuning, openConnected } from "../../src/transport/connected-session.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { type ShmTransportOptions, shm } from "../../transports/shm/index.ts";
import { testData } from "./compliance/data.ts";
import { testTransport } from "./compliance/suite.ts";
import type { Subject, World } from "./compliance/world.ts";

async function openShm(world: number, options: ShmTransportOptions = {}): Promise<World> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    sessions.push(await shm(options).open({ rank, world, store: stores() }));
  }
  return worldOf(sessions);
}

function worldOf(sessions: readonly TransportSession[]): World {
  return {
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) await session.close();
    },
  };
}

/** Sessions that reach each other's memory as they would that of other processes. */
async function openApart(world: number): Promise<World> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    const setup = {
      name: "shm",
      capabilities: shm().capabilities,
      carriers: ["shm", "apart"],
      meet: async () => ({
        tuning: checkTuning({ ioThreads: 2 }),
        connections: 1,
        namespace: undefined,
        listenHost: "127.0.0.1",
        listenPort: 0,
        advertised: { host: "127.0.0.1" },
        secrets: [new Uint8Array(0)],
      }),
    } as const;
    sessions.push(await openConnected(setup, { rank, world, store: stores() }));
  }
  return worldOf(sessions);
}

const openOne: Subject["openOne"] = (options) => shm().open({ ...options, store: memoryStores()() });

testTransport({
  name: "shm",
  capabilities: shm().capabilities,
  open: openShm,
  openOne,
});

testData({
  name: "shm by process_vm_readv",
  capabilities: shm().capabilities,
  open: openApart,
  openOne,
});
