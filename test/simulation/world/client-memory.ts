/** The memory of simulated clients, as their agent holds it. */

import type { ClientMemory, HeldRegions } from "../../../src/bus/batch/memory.ts";
import type { ClientIdentity } from "../../../src/bus/queue/command-header.ts";
import type { RegionMessage } from "../../../src/bus/queue/commands.ts";
import { TensorBusError } from "../../../src/errors.ts";
import type { Memory } from "../../../src/memory/memory.ts";
import type { TransportSession } from "../../../src/transport/transport.ts";

/** Memory of a client as its agent maps it: what touches it once it is unmapped would end the agent. */
class Mapping implements Memory {
  readonly kind = "host";
  readonly address: bigint;
  readonly bytes: bigint;
  readonly #memory: Memory;
  #isMapped = true;

  constructor(memory: Memory) {
    this.#memory = memory;
    this.address = memory.address;
    this.bytes = memory.bytes;
  }

  /** Of `HostMemory` as it is simulated. */
  get content(): Uint8Array {
    if (this.#isMapped) return (this.#memory as unknown as { readonly content: Uint8Array }).content;
    throw new Error("memory of a client was touched after its agent had let go of it");
  }

  retain(): void {
    this.#memory.retain();
  }

  release(): void {
    this.#memory.release();
  }

  unmap(): void {
    this.#isMapped = false;
  }
}

interface Entry {
  readonly key: bigint;
  readonly memory: Mapping;
  readonly session: TransportSession;
  users: number;
}

export class SimulatedMemory implements ClientMemory {
  readonly #memoryOf: (key: bigint) => Memory;
  readonly #isAlive: (client: bigint) => boolean;
  readonly #entries = new Map<bigint, Entry>();

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
    const { key } = region;
    const known = this.#entries.get(key);
    if (known !== undefined && known.session === session) {
      known.users += 1;
      return known;
    }
    const memory = new Mapping(this.#memoryOf(key));
    session.register(memory);
    const entry = { key, memory, session, users: 1 };
    this.#entries.set(key, entry);
    return entry;
  }

  #drop(entry: Entry): void {
    entry.users -= 1;
    if (entry.users > 0) return;
    if (this.#entries.get(entry.key) === entry) this.#entries.delete(entry.key);
    try {
      entry.session.unregister(entry.memory);
    } catch (error) {
      // A session that is closed has let go of it.
      if (!(error instanceof TensorBusError) || error.code !== "TB_CLOSED") throw error;
    }
    entry.memory.unmap();
  }
}
