/** The suite of all transports, on the carrier that docs/adding-a-transport.md adds. It is in a library of its own. */
import { join } from "node:path";
import { vi } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { testTransport } from "./compliance/suite.ts";
import type { World } from "./compliance/world.ts";
import { file } from "./kit/file.ts";

vi.mock("../../src/ffi/library.ts", async (load) => {
  const library = await load<typeof import("../../src/ffi/library.ts")>();
  const path = join(import.meta.dirname, "../../native/build/doubles/libtensorbus.so");
  return { ...library, libraryPath: () => path, openLibrary: () => library.openLibrary(path) };
});

async function open(world: number): Promise<World> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    sessions.push(await file().open({ rank, world, store: stores() }));
  }
  return {
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) await session.close();
    },
  };
}

const openOne = (options: { rank: number; world: number }) =>
  file().open({ ...options, store: memoryStores()() });

testTransport({ name: "file", capabilities: file().capabilities, open, openOne });
