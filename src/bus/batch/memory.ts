/**
 * The memory of clients, as their agent addresses it. A client only names a descriptor of its own; the agent opens it
 * through /proc, where only processes of its own user can be opened, and maps nothing but a sealed memfd of the size that
 * was named: what a client does afterwards cannot take it away.
 */
import { closeSync, constants, fstatSync, openSync, readlinkSync, type Stats, statSync } from "node:fs";
import { TensorBusError } from "../../errors.ts";
import { DeviceMemory } from "../../memory/cuda/index.ts";
import type { Memory } from "../../memory/memory.ts";
import { SharedMemory } from "../../memory/shared-memory.ts";
import type { TransportSession } from "../../transport/transport.ts";
import { isRunning } from "../process/identity.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import type { RegionMessage } from "../queue/commands.ts";
import type { HostRegions } from "../tensor/host-regions.ts";
import { RegionEvents, type RegionEventsOptions } from "./region-events.ts";

interface Entry {
  readonly memory: Memory;
  readonly session: TransportSession;
  readonly forget: () => void;
  /** Absent for memory that stays its client's. */
  readonly close: (() => void) | undefined;
  users: number;
  /** A rank that did not stop in time may still read it: it stays mapped, and is used for nothing else. */
  isQuarantined: boolean;
}

/** Regions of one registration; what is released twice is released once. */
export interface HeldRegions {
  /** In the order of the command's regions. */
  readonly memories: readonly Memory[];
  /** What orders rounds with the work of the memory's owners, if they gave events. */
  readonly events: RegionEvents | undefined;
  /** Only once nothing can touch them any more: all that was prepared on them has been released. */
  release(): void;
}

/** The memory of an agent's clients. */
export interface ClientMemory {
  /**
   * Maps a client's regions and registers them with the session. `TB_CLIENT_LOST` if the client has ended,
   * `TB_TENSOR_MISSING` if one of its descriptors is no memory (any more), `TB_REGION` if it is another one,
   * `TB_SEAL` if it may shrink or is smaller than was said, `TB_UNSUPPORTED` for memory that cannot be addressed.
   */
  hold(client: ClientIdentity, regions: readonly RegionMessage[], session: TransportSession): HeldRegions;
}

/** The place where the descriptors of clients are found. */
export interface ClientDescriptors {
  /** True while the client is there to be served. */
  isAlive(client: ClientIdentity): boolean;
  /** A descriptor that a command of the client names, as a path under /proc. */
  path(client: ClientIdentity, fd: number): string;
}

/** Clients are processes that this one sees, and name descriptors of their own. */
export const processDescriptors: ClientDescriptors = {
  isAlive: (client) => isRunning(client) && client.uid === process.geteuid!(),
  path: (client, fd) => `/proc/${client.pid}/fd/${fd}`,
};

export class AgentMemory implements ClientMemory {
  readonly #host: HostRegions;
  readonly #reporting: RegionEventsOptions;
  readonly #descriptors: ClientDescriptors;
  /** Mapped memory by device and inode, so that batches share it; memory of this process by its object. */
  readonly #shared = new Map<string, Entry>();
  readonly #plain = new Map<Memory, Entry>();
  /** Opened memory of GPUs by device, size and handle. */
  readonly #cuda = new Map<string, Entry>();

  constructor(
    host: HostRegions,
    reporting: RegionEventsOptions,
    descriptors: ClientDescriptors = processDescriptors,
  ) {
    this.#host = host;
    this.#reporting = reporting;
    this.#descriptors = descriptors;
  }

  /** Regions that are mapped now. */
  get size(): number {
    return this.#shared.size + this.#plain.size + this.#cuda.size;
  }

  hold(client: ClientIdentity, regions: readonly RegionMessage[], session: TransportSession): HeldRegions {
    const entries: Entry[] = [];
    let events: RegionEvents | undefined;
    let released = false;
    const release = () => {
      if (released) return;
      released = true;
      events?.close();
      const failures = entries.flatMap((entry) => {
        try {
          this.#drop(entry);
          return [];
        } catch (error) {
          return [error];
        }
      });
      // One that cannot be let go of keeps no other.
      if (failures.length > 0) throw failures[0];
    };
    try {
      if (!this.#descriptors.isAlive(client)) throw clientLost(client);
      for (const region of regions) entries.push(this.#hold(client, region, session));
      events = RegionEvents.open(this.#reporting, regions);
    } catch (error) {
      release();
      throw error;
    }
    return { memories: entries.map(({ memory }) => memory), events, release };
  }

  #hold(client: ClientIdentity, region: RegionMessage, session: TransportSession): Entry {
    switch (region.kind) {
      case "shared":
        return this.#holdShared(client, region, session);
      case "host":
        return this.#holdPlain(client, region, session);
      case "cuda":
        return this.#holdCuda(client, region, session);
    }
  }

  #holdShared(
    client: ClientIdentity,
    region: Extract<RegionMessage, { kind: "shared" }>,
    session: TransportSession,
  ): Entry {
    const key = `${region.device}:${region.inode}`;
    const path = this.#descriptors.path(client, region.fd);
    // The inode of a mapped memfd cannot be another's: it lives as long as it is mapped.
    const known = this.#shared.get(key);
    const entry =
      known !== undefined && known.session === session && proves(path, region)
        ? known
        : this.#add(this.#shared, key, mapShared(path, region), session);
    requireFree(entry);
    if (region.bytes > entry.memory.bytes) {
      if (entry.users === 0) this.#discard(entry);
      throw new TensorBusError(
        "TB_SEAL",
        `the shared memory has ${entry.memory.bytes} bytes, but the client says ${region.bytes}`,
        {
          details: { bytes: region.bytes, found: entry.memory.bytes, fd: region.fd },
        },
      );
    }
    entry.users += 1;
    return entry;
  }

  #holdCuda(client: ClientIdentity, region: CudaRegion, session: TransportSession): Entry {
    if (!session.capabilities.memory.includes("cuda")) {
      throw new TensorBusError(
        "TB_UNSUPPORTED",
        "this agent cannot address CUDA memory: it was started without --device",
        { details: { kind: region.kind, supported: session.capabilities.memory } },
      );
    }
    const key = `${region.device} ${region.bytes} ${Buffer.from(region.handle).toString("base64")}`;
    const known = this.#cuda.get(key);
    const entry =
      known !== undefined && known.session === session
        ? known
        : this.#add(this.#cuda, key, openCuda(client, region), session);
    requireFree(entry);
    entry.users += 1;
    return entry;
  }

  #holdPlain(
    client: ClientIdentity,
    region: Extract<RegionMessage, { kind: "host" }>,
    session: TransportSession,
  ): Entry {
    if (client.pid !== process.pid) {
      throw new TensorBusError("TB_UNSUPPORTED", "plain memory is for clients in the agent's own process", {
        details: { pid: client.pid },
      });
    }
    const memory = this.#host.get(region.key);
    const entry = this.#plain.get(memory) ?? this.#register(this.#plain, memory, memory, session);
    requireFree(entry);
    entry.users += 1;
    return entry;
  }

  /** `memory` was opened here, and is closed with its last user. */
  #add<K>(map: Map<K, Entry>, key: K, memory: Memory & { close(): void }, session: TransportSession): Entry {
    return this.#register(map, key, memory, session, () => memory.close());
  }

  #register<K>(
    map: Map<K, Entry>,
    key: K,
    memory: Memory,
    session: TransportSession,
    close?: () => void,
  ): Entry {
    try {
      session.register(memory);
    } catch (error) {
      close?.();
      throw error;
    }
    const forget = () => {
      if (map.get(key) === entry) map.delete(key);
    };
    const entry: Entry = { memory, session, forget, close, users: 0, isQuarantined: false };
    map.set(key, entry);
    return entry;
  }

  #drop(entry: Entry): void {
    entry.users -= 1;
    if (entry.users === 0) this.#discard(entry);
  }

  #discard(entry: Entry): void {
    const { memory, session, forget, close } = entry;
    try {
      session.unregister(memory);
    } catch (error) {
      const code = error instanceof TensorBusError ? error.code : undefined;
      // It stays where it is, and known: what its batch was is over all the same.
      entry.isQuarantined = code === "TB_QUARANTINED";
      if (entry.isQuarantined) return;
      forget();
      // A session that was closed has let go of it. One that still uses it keeps it mapped: it is not closed here.
      if (code !== "TB_CLOSED") throw error;
      close?.();
      return;
    }
    forget();
    close?.();
  }
}

function requireFree({ isQuarantined }: Entry): void {
  if (!isQuarantined) return;
  const message =
    "a rank that did not stop in time may still read this memory: register other memory, or start a new agent";
  throw new TensorBusError("TB_QUARANTINED", message);
}

function clientLost(client: ClientIdentity): TensorBusError {
  return new TensorBusError("TB_CLIENT_LOST", `the client's process ${client.pid} has ended`, {
    details: { pid: client.pid },
  });
}

function missing(fd: number, cause?: unknown): TensorBusError {
  return new TensorBusError("TB_TENSOR_MISSING", `descriptor ${fd} of the client is not shared memory`, {
    details: { fd },
    cause,
  });
}

/** What the client's descriptor stands for, without opening it: opening a pipe or a device might have an effect. */
function look(path: string, fd: number): Stats {
  try {
    if (!readlinkSync(path).startsWith("/memfd:")) throw missing(fd);
    return statSync(path);
  } catch (error) {
    if (error instanceof TensorBusError) throw error;
    throw missing(fd, error);
  }
}

type CudaRegion = Extract<RegionMessage, { kind: "cuda" }>;

function openCuda(client: ClientIdentity, region: CudaRegion): DeviceMemory {
  try {
    return DeviceMemory.open({ ...region, offset: 0n });
  } catch (error) {
    const refused = error instanceof TensorBusError && error.code === "TB_CUDA";
    if (!refused || client.pid !== process.pid) throw error;
    const hint =
      "CUDA opens no handle in the process that made it: an agent of that process takes the address";
    throw new TensorBusError("TB_CUDA", `${error.message}; ${hint}`, {
      details: error.details,
      cause: error,
    });
  }
}

type SharedRegion = Extract<RegionMessage, { kind: "shared" }>;

function isSame(stats: Stats, { device, inode }: SharedRegion): boolean {
  return BigInt(stats.dev) === device && BigInt(stats.ino) === inode;
}

function requireSame(stats: Stats, region: SharedRegion): void {
  if (isSame(stats, region)) return;
  throw new TensorBusError(
    "TB_REGION",
    `descriptor ${region.fd} of the client is not the memory that it describes`,
    {
      details: { fd: region.fd, inode: region.inode, found: stats.ino },
    },
  );
}

/** Memory that is mapped already must be the client's own all the same. */
function proves(path: string, region: SharedRegion): boolean {
  requireSame(look(path, region.fd), region);
  return true;
}

function mapShared(path: string, region: SharedRegion): SharedMemory {
  requireSame(look(path, region.fd), region);
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    throw missing(region.fd, error);
  }
  try {
    const stats = fstatSync(fd);
    requireSame(stats, region);
    // All of it: another batch may use more of it than this one.
    return SharedMemory.map(fd, stats.size);
  } finally {
    closeSync(fd);
  }
}
