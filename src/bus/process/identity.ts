/**
 * Who a process is, and when: a pid alone comes back, and the wall clock jumps. A process is its pid, the time when it
 * started and the boot of the machine; a deadline is a boot and a reading of CLOCK_MONOTONIC.
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";

export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks from boot to the start of the process: field 22 of /proc/PID/stat (proc(5)). */
  readonly startTime: bigint;
  /** The boot of the machine: /proc/sys/kernel/random/boot_id. */
  readonly boot: string;
  readonly uid: number;
}

/** A moment that every process of this boot reads alike. */
export interface Moment {
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

/** The start time of a process that runs; `undefined` for one that does not. */
export function startTimeOf(pid: number): bigint | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The second field is the name in brackets, which may hold spaces and brackets itself.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return BigInt(fields[19]!);
}

export function ownIdentity(): ProcessIdentity {
  return { pid: process.pid, startTime: startTimeOf(process.pid)!, boot: bootId(), uid: process.geteuid!() };
}

/** True while that very process runs, a zombie included; a later one with its pid is another. */
export function isRunning(identity: Pick<ProcessIdentity, "pid" | "startTime" | "boot">): boolean {
  return identity.boot === bootId() && startTimeOf(identity.pid) === identity.startTime;
}

/** A random number of 62 bits: the name of a client, and of its byte in the lock file. */
export function randomClientId(): bigint {
  return randomBytes(8).readBigUInt64LE() >> 2n;
}
