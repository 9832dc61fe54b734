/**
 * Tells which processes live. A process of the bus holds a one-byte lock in a folder's lock file; the kernel frees it when the process
 * ends, however that comes, and a native thread of each process that cares waits for exactly that. A heartbeat tells a
 * process that is stopped from one that runs: it is unresponsive, not dead.
 */
import { Deadline, type DeadlineOptions, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { nativeBus } from "../../ffi/bus.ts";
import type { EventPort } from "./event-port.ts";
import { privateName } from "./names.ts";
import { OwnedHandle } from "./owned-handle.ts";

/** The bytes of a folder's lock file. */
export const lockOffsets = {
  /** Before LMDB's write lock: held for the microseconds of a write. */
  gate: 0n,
  /** The agent's claim: only ever tried, so that who is refused knows that an agent has it. */
  claim: 1n,
  /** The agent's life: waited for by its clients. A second byte, since those who wait hold it for a moment at the end. */
  agent: 2n,
  /** Shared by all who have the folder open: `TB_GATE_USERS` of native/include/tensorbus_bus.h. */
  users: 3n,
} as const;

/** Says where a client's byte stands: locks may lie far behind the end of a file. */
export function clientOffset(clientId: bigint): bigint {
  return (1n << 32n) + clientId;
}

/** A folder's lock file, opened by this process. Closing it lets go of what was taken through it. */
export class LockFile extends OwnedHandle {
  /** `TB_FOREIGN` for a file that is not this user's. */
  constructor(locksPath: string) {
    super("this lock file", nativeBus.tb_lock_open(locksPath), (open) => nativeBus.tb_lock_close(open));
  }

  /** True while somebody holds the lock, this process's own locks included. */
  isHeld(offset: bigint): boolean {
    return nativeBus.tb_lock_held(this.handle, offset) === 1;
  }

  /** Takes a lock; false if another holds it. */
  take(offset: bigint): boolean {
    return nativeBus.tb_lock_try(this.handle, offset) === 1;
  }

  /** Takes a lock that others share; false if one holds it alone. */
  share(offset: bigint): boolean {
    return nativeBus.tb_lock_share(this.handle, offset) === 1;
  }
}

/** The lock file with that lock taken; `undefined` if another holds it. `TB_FOREIGN` for a file that is not this user's. */
export function tryLock(locksPath: string, offset: bigint): LockFile | undefined {
  const locks = new LockFile(locksPath);
  let isTaken = false;
  try {
    isTaken = locks.take(offset);
    return isTaken ? locks : undefined;
  } finally {
    if (!isTaken) locks.close();
  }
}

/** A folder that this process has open, as others can tell from `begin` on. */
export class FolderUse extends LockFile {
  readonly #locksPath: string;
  /** Others had it open when this was made. */
  readonly others: boolean;

  /** To be made and begun inside the folder's gate, so that of two who come at once one is the first. */
  constructor(locksPath: string) {
    super(locksPath);
    this.#locksPath = locksPath;
    try {
      this.others = this.isHeld(lockOffsets.users);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** From now on others can tell. `TB_BUS_FORMAT` if they could not, since a program holds the lock of all users alone. */
  begin(): void {
    if (this.share(lockOffsets.users)) return;
    const message =
      `another program has locked ${this.#locksPath} for itself alone, as no client or agent does: ` +
      "end it, and try again";
    throw new TensorBusError("TB_BUS_FORMAT", message, { details: { path: this.#locksPath } });
  }
}

/** Waits, on a thread of its own, for one lock to be free. */
export class Watch implements Disposable {
  readonly #port: EventPort;
  readonly #token: bigint;
  #handle: bigint | undefined;

  constructor(port: EventPort, locksPath: string, offset: bigint, onFree: () => void) {
    this.#port = port;
    this.#token = port.listen(() => {
      if (this.#handle !== undefined) onFree();
    });
    try {
      this.#handle = nativeBus.tb_watch_start(port.handle, locksPath, offset, this.#token);
    } catch (error) {
      port.unlisten(this.#token);
      throw error;
    }
  }

  /** Ends the thread; `onFree` is not called any more. A second call does nothing. */
  close(): void {
    const handle = this.#handle;
    this.#handle = undefined;
    if (handle === undefined) return;
    nativeBus.tb_watch_stop(handle);
    this.#port.unlisten(this.#token);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Calls `onFree` once, as soon as nobody holds the lock: a process that held it has ended, or let go of it. At once, but
 * never before this returns, if nobody does.
 */
export function watchLock(port: EventPort, locksPath: string, offset: bigint, onFree: () => void): Watch {
  return new Watch(port, locksPath, offset, onFree);
}

/** Resolves as soon as nobody holds the lock. */
export function lockFreed(
  port: EventPort,
  locksPath: string,
  offset: bigint,
  options: DeadlineOptions = {},
): Promise<void> {
  const letGo = port.hold();
  return waitUntil<void>("the end of another process", new Deadline(options), (resolve) => {
    const watch = watchLock(port, locksPath, offset, () => resolve());
    return () => watch.close();
  }).finally(letGo);
}

/** An agent's hold on a folder. */
export class AgentClaim implements Disposable {
  readonly #port: EventPort;
  readonly #locksPath: string;
  readonly #claim: LockFile;
  #life: LockFile | undefined;
  #closed = false;

  constructor(port: EventPort, locksPath: string, claim: LockFile) {
    this.#port = port;
    this.#locksPath = locksPath;
    this.#claim = claim;
  }

  /**
   * Tells those who look that the agent lives. To be called once the agent has written who it is: whoever finds it alive
   * then finds itself told the truth. Those who watched a dead predecessor hold its byte for an instant: that is waited
   * for.
   */
  async live(options: DeadlineOptions = {}): Promise<void> {
    const deadline = new Deadline(options);
    while (this.#life === undefined && !this.#closed) {
      this.#life = tryLock(this.#locksPath, lockOffsets.agent);
      if (this.#life === undefined) {
        await lockFreed(this.#port, this.#locksPath, lockOffsets.agent, deadline.rest);
      }
    }
  }

  /** Gives the folder up; a second call does nothing. */
  close(): void {
    this.#closed = true;
    // Life first: whoever gets the claim can live at once.
    this.#life?.close();
    this.#claim.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Makes this process the one that may be the agent of a folder, until the claim is closed or the process ends. `TB_EXISTS`
 * if another has it.
 */
export function claimFolder(port: EventPort, locksPath: string): AgentClaim {
  const claim = tryLock(locksPath, lockOffsets.claim);
  if (claim !== undefined) return new AgentClaim(port, locksPath, claim);
  throw new TensorBusError("TB_EXISTS", `another agent holds ${locksPath}`, { details: { path: locksPath } });
}

/** Milliseconds between two beats. */
export const beatMs = 100;
/** A heartbeat that has been silent for this long has stopped: many beats, since a busy machine may miss some. */
export const unresponsiveMs = 2000;

/** This process's heartbeat: a word in shared memory that a native thread keeps current. */
export class Heartbeat extends OwnedHandle {
  readonly name: string;

  /** Closing it stops it and removes its memory. */
  constructor() {
    const name = privateName();
    super("this heartbeat", nativeBus.tb_heartbeat_start(name, beatMs), (beating) =>
      nativeBus.tb_heartbeat_stop(beating),
    );
    this.name = name;
  }
}

export function startHeartbeat(): Heartbeat {
  return new Heartbeat();
}

/** Removes a dead process's heartbeat; false if there was none. */
export function unlinkHeartbeat(name: string): boolean {
  return nativeBus.tb_heartbeat_unlink(name) === 1;
}

/** Another process's heartbeat. */
export class Pulse extends OwnedHandle {
  constructor(name: string) {
    super("this heartbeat", nativeBus.tb_pulse_open(name), (open) => nativeBus.tb_pulse_close(open));
  }

  /** Milliseconds since the last beat. */
  ageMs(): number {
    return Number(nativeBus.tb_pulse_age(this.handle)) / 1e6;
  }

  isResponsive(): boolean {
    return this.ageMs() < unresponsiveMs;
  }
}

/** `TB_FOREIGN` unless it is this user's; `TB_SYSTEM` with `details.errno` 2 if there is none. */
export function openPulse(name: string): Pulse {
  return new Pulse(name);
}
