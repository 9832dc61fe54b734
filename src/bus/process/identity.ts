/**
 * The identity of a process in time: a pid alone comes back, and the wall clock jumps. A process is its pid, the time when it
 * started and the boot of the machine; a deadline is a boot and a reading of CLOCK_MONOTONIC.
 */
import { randomBytes } from "node:crypto";
import { readFileSync, readlinkSync } from "node:fs";
import { TensorBusError } from "../../errors.ts";

interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks from boot to the start of the process: field 22 of /proc/PID/stat (proc(5)). */
  readonly startTime: bigint;
  /** The boot of the machine: /proc/sys/kernel/random/boot_id. */
  readonly boot: string;
  readonly uid: number;
}

/** A moment that every process of this boot reads alike. */
interface Moment {
  readonly boot: string;
  /** CLOCK_MONOTONIC in nanoseconds. */
  readonly ns: bigint;
}

let boot: string | undefined;

/** The same in every process until the machine starts again. */
export function bootId(): string {
  boot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return boot;
}

/** CLOCK_MONOTONIC in nanoseconds: the clock that Node.js reads for hrtime on Linux. */
export function monotonicNs(): bigint {
  return process.hrtime.bigint();
}

export function momentIn(milliseconds: number): Moment {
  return { boot: bootId(), ns: monotonicNs() + BigInt(Math.ceil(milliseconds * 1e6)) };
}

/** A moment of another boot has passed. */
export function hasPassed(moment: Moment): boolean {
  return moment.boot !== bootId() || moment.ns <= monotonicNs();
}

/** The kernel's namespaces that pids and clocks are read in: numbers from one do not mean the same in another. */
interface Namespaces {
  /** What /proc/self/ns/pid points to; empty if the kernel has none. */
  readonly pid: string;
  /** The same of /proc/self/ns/time. */
  readonly time: string;
}

let namespaces: Namespaces | undefined;

export function ownNamespaces(): Namespaces {
  namespaces ??= { pid: namespaceOf("pid"), time: namespaceOf("time") };
  return namespaces;
}

function namespaceOf(kind: keyof Namespaces): string {
  try {
    return readlinkSync(`/proc/self/ns/${kind}`);
  } catch {
    return ""; // older than Linux 5.6: all processes read one clock
  }
}

/** State and start time of a process, as /proc of that mount shows it; `undefined` if there is none. */
function statOf(
  process: number | "self",
): { readonly state: string; readonly startTime: bigint } | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${process}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The second field is the name in brackets, which may hold spaces and brackets itself.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0]!, startTime: BigInt(fields[19]!) };
}

/** `TB_SYSTEM` if /proc is not mounted: without it no process can be told from a later one with its pid. */
export function ownIdentity(): ProcessIdentity {
  // Not by the pid: /proc may be that of another PID namespace.
  const startTime = statOf("self")?.startTime;
  if (startTime === undefined) {
    throw new TensorBusError("TB_SYSTEM", "/proc/self/stat cannot be read: mount /proc in this container");
  }
  return { pid: process.pid, startTime, boot: bootId(), uid: process.geteuid!() };
}

/** True while that very process runs, a zombie included; a later one with its pid is another. */
export function isRunning(identity: Pick<ProcessIdentity, "pid" | "startTime" | "boot">): boolean {
  return identity.boot === bootId() && statOf(identity.pid)?.startTime === identity.startTime;
}

/**
 * True if that process of this boot and PID namespace has certainly ended. Never if /proc shows another namespace's
 * processes.
 */
export function hasEnded({ pid, startTime }: Pick<ProcessIdentity, "pid" | "startTime">): boolean {
  if (!showsOwnProcesses()) return false;
  const stat = statOf(pid);
  // A zombie keeps its pid until its parent has looked, and nothing else.
  return stat?.startTime !== startTime || stat.state === "Z" || stat.state === "X";
}

function showsOwnProcesses(): boolean {
  try {
    return readlinkSync("/proc/self") === String(process.pid);
  } catch {
    return false;
  }
}

/** A random number of 62 bits: the name of a client, and of its byte in the lock file. */
export function randomClientId(): bigint {
  return randomBytes(8).readBigUInt64LE() >> 2n;
}
