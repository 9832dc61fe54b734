/**
 * The names of what processes of the bus share in /dev/shm. A name says whose it is: the user, the PID namespace, the
 * process and when it began, so that what a killed process left there is known by the name alone, whatever became of the
 * folder that it stood in.
 */
import { randomBytes } from "node:crypto";
import { readdirSync, unlinkSync } from "node:fs";
import { hasEnded, ownIdentity, ownNamespaces } from "./identity.ts";

/** The random part is what keeps another user from making it first. */
const pattern = /^\/tensorbus-(\d+)-(\d+)-(\d+)-(\d+)-[0-9a-f]{32}$/;
const folder = "/dev/shm";
/** What the C library puts before the name of a semaphore: sem_overview(7). */
const semaphorePrefix = "sem.";

/** The number in what /proc/self/ns/pid points to; 0 if the kernel has no such namespaces. */
function pidNamespace(): string {
  return /\d+/.exec(ownNamespaces().pid)?.[0] ?? "0";
}

/** A new name, for a semaphore or for shared memory. */
export function privateName(): string {
  const { uid, pid, startTime } = ownIdentity();
  return `/tensorbus-${uid}-${pidNamespace()}-${pid}-${startTime}-${randomBytes(16).toString("hex")}`;
}

let ownUid = -1;

/** Asks the system only for a user that it has not named before: every command has such a name. */
function isOwnUid(uid: number): boolean {
  if (uid !== ownUid) ownUid = process.geteuid!();
  return uid === ownUid;
}

/** The last name that was one. */
let knownName = "";

/**
 * True for a name that `privateName` of a process of this user could have made. Every command of a client has the same one,
 * which is looked at when it is sent and when it comes.
 */
export function isPrivateName(name: string): boolean {
  if (name === knownName) return true;
  const uid = pattern.exec(name)?.[1];
  const isOne = uid !== undefined && isOwnUid(Number(uid));
  if (isOne) knownName = name;
  return isOne;
}

/**
 * Removes what processes of this user and PID namespace that have ended have left in /dev/shm; how much that was. Who is
 * killed has no time to, and who comes after it finds its names only while the folder is there and whole.
 */
export function sweepNames(): number {
  let entries: string[];
  try {
    entries = readdirSync(folder);
  } catch {
    return 0; // a system without it has nothing there
  }
  return entries.filter(isLeftBehind).filter((entry) => {
    try {
      unlinkSync(`${folder}/${entry}`);
      return true;
    } catch {
      return false; // another process swept it
    }
  }).length;
}

function isLeftBehind(entry: string): boolean {
  const name = entry.startsWith(semaphorePrefix) ? entry.slice(semaphorePrefix.length) : entry;
  const parts = pattern.exec(`/${name}`);
  if (parts === null || !isOwnUid(Number(parts[1])) || parts[2] !== pidNamespace()) return false;
  return hasEnded({ pid: Number(parts[3]), startTime: BigInt(parts[4]!) });
}
