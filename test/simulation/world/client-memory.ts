/** The memory of simulated clients, as their agent holds it. */

import type { ClientMemory, HeldRegions } from "../../../src/bus/batch/memory.ts";
import type { ClientIdentity } from "../../../src/bus/queue/command-header.ts";
import type { RegionMessage } from "../../../src/bus/queue/commands.ts";
import { TensorBusError } from "../../../src/errors.ts";
import type { Memory } from "../../../src/memory/memory.ts";
import type { TransportSession } from "../../../src/transport/transport.ts";

interface Entry {
  readonly memory: Memory;
  readonly session: TransportSession;
  users: number;
}

export class SimulatedMemory implements ClientMemory {
  readonly #memoryOf: (key: bigint) => Memory;
  readonly #isAlive: (client: bigint) => boolean;
  readonly #entries = new Map<Memory, Entry>();

  constructor(memoryOf: (key: bigint) => Memory, isAlive: (client: bigint) => boolean) {
    this.#memoryOf = memoryOf;
    this.#isAlive = isAlive;
  }

  /** Regions that are held now. */
  get size(): number {
    return this.#entries.size;
  }

  hold(client: ClientIdentity, regions: readonly RegionMessage[], session: TransportSession): HeldRegions {
    if (!this.#isAlive(client.id)) {
      throw new TensorBusError("TB_CLIENT_LOST", "the client has ended");
    }
    const entries = regions.map((region) => this.#hold(region, session));
    let isReleased = false;
    return {
      memories: entries.map(({ memory }) => memory),
      events: undefined,
      release: () => {
        if (isReleased) return;
        isReleased = true;
        for (const entry of entries) this.#drop(entry);
      },
    };
  }

  #hold(region: RegionMessage, session: TransportSession): Entry {
    if (region.kind !== "host") throw new TypeError("a simulated client has memory of the host");
    const memory = this.#memoryOf(region.key);
    const known = this.#entries.get(memory);
    if (known !== undefined && known.session === session) {
      known.users += 1;
      return known;
    }
    session.register(memory);
    const entry = { memory, session, users: 1 };
    this.#entries.set(memory, entry);
    return entry;
  }

  #drop(entry: Entry): void {
    entry.users -= 1;
    if (entry.users > 0) return;
    if (this.#entries.get(entry.memory) === entry) this.#entries.delete(entry.memory);
    try {
      entry.session.unregister(entry.memory);
    } catch (error) {
      // A session that is closed has let go of it.
      if (!(error instanceof TensorBusError) || error.code !== "TB_CLOSED") throw error;
    }
  }
}
