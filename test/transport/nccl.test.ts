/** The nccl transport on the doubles of libcuda and libnccl (test/doubles): one rank a device of the double. */
import { memoryStores } from "../../src/store/memory-store.ts";
import { nccl } from "../../transports/nccl/index.ts";
import { testTransport } from "./compliance.ts";
import { deviceOf, useDoubles } from "./nccl-doubles.ts";

useDoubles(16);

const transportOf = (rank: number) => nccl({ device: deviceOf(rank) });

testTransport({
  name: "nccl (doubles)",
  capabilities: transportOf(0).capabilities,
  async open(world) {
    const stores = memoryStores();
    const sessions = await Promise.all(
      Array.from({ length: world }, (_, rank) => transportOf(rank).open({ rank, world, store: stores() })),
    );
    return {
      sessions,
      async [Symbol.asyncDispose]() {
        await Promise.all(sessions.map((session) => session.close()));
      },
    };
  },
  openOne: (options) => transportOf(0).open({ ...options, store: memoryStores()() }),
});
