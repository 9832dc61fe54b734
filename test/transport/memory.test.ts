import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { memory } from "../../transports/memory/index.ts";
import { testTransport } from "./compliance/suite.ts";

testTransport({
  name: "memory",
  capabilities: memory().capabilities,
  async open(world) {
    const transport = memory();
    const store = memoryStores()();
    const sessions: TransportSession[] = [];
    for (let rank = 0; rank < world; rank++) sessions.push(await transport.open({ rank, world, store }));
    return {
      sessions,
      async [Symbol.asyncDispose]() {
        for (const session of sessions) await session.close();
      },
    };
  },
  openOne: (options) => memory().open({ ...options, store: memoryStores()() }),
});
