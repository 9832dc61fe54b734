/** The suite of all transports over the real library: by TCP, whose reads its worker answers, and by shared memory. */
import { describe } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { ucx } from "../../transports/ucx/index.ts";
import { testData } from "./compliance/data.ts";
import { testTransport } from "./compliance/suite.ts";
import type { Subject, World } from "./compliance/world.ts";
import { ucxVersion } from "./kit/ucx.ts";

function subject(name: string, transports: string): Subject {
  return {
    name,
    capabilities: ucx().capabilities,
    async open(world: number): Promise<World> {
      const stores = memoryStores();
      const sessions: TransportSession[] = [];
      for (let rank = 0; rank < world; rank++) {
        sessions.push(await ucx({ transports }).open({ rank, world, store: stores() }));
      }
      return {
        sessions,
        async [Symbol.asyncDispose]() {
          for (const session of sessions) await session.close();
        },
      };
    },
    openOne: (options) => ucx({ transports }).open({ ...options, store: memoryStores()() }),
  };
}

describe.skipIf(ucxVersion === undefined)(`UCX ${ucxVersion}`, () => {
  testTransport(subject("ucx over tcp", "tcp,self"));
  testData(subject("ucx by shared memory", "posix,cma,self"));
});
