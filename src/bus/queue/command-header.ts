/**
 * What every command says of itself. Checked by hand and not by a schema: a small command is little else, and its way to
 * the agent pays for the check twice.
 */
import { isPrivateName } from "../process/names.ts";

export const commandTypes = [
  "InitPair",
  "RegisterTensors",
  "Transfer",
  "QueryStatus",
  "CleanupBatch",
  "Cancel",
] as const;
export type CommandType = (typeof commandTypes)[number];

/** The sender: a process, and one of its clients. */
export interface ClientIdentity {
  /** `randomClientId`: the client's byte in the lock file, and the first half of its commands' ids. */
  readonly id: bigint;
  readonly pid: number;
  readonly startTime: bigint;
  readonly boot: string;
  readonly uid: number;
  /** Name of the wake semaphore that is posted when a result has been written. */
  readonly wake: string;
}

export interface CommandHeader {
  readonly type: CommandType;
  /** The command's number in its client: it rises by one with each command. */
  readonly id: bigint;
  /** Milliseconds since 1970, for people only. */
  readonly timestamp: number;
  /** `generateSemaphoreName`: what the command is called in logs, and the client's semaphore for it. */
  readonly semaphore: string;
  readonly client: ClientIdentity;
  /** `Moment`: it is not begun after this. */
  readonly deadline: { readonly boot: string; readonly ns: bigint };
  /** Ids of this client's commands whose results it has read: the agent may forget them. */
  readonly acknowledged: readonly bigint[];
}

type Checks<T> = { readonly [field in keyof T]-?: (value: unknown) => boolean };

const isU64 = (value: unknown) => typeof value === "bigint" && value >= 0n && value < 2n ** 64n;
const isCount = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
const isBoot = (value: unknown) => typeof value === "string" && value.length >= 1 && value.length <= 64;
const maxNameLength = 255;
/** Acknowledgements that one command carries at most. */
export const maxAcknowledged = 65_536;

const clientChecks: Checks<ClientIdentity> = {
  id: (id) => isU64(id) && (id as bigint) < 2n ** 62n,
  pid: (pid) => isCount(pid) && pid !== 0,
  startTime: isU64,
  boot: isBoot,
  uid: isCount,
  wake: (wake) => typeof wake === "string" && wake.length <= maxNameLength && isPrivateName(wake),
};

const deadlineChecks: Checks<CommandHeader["deadline"]> = { boot: isBoot, ns: isU64 };

const headerChecks: Checks<CommandHeader> = {
  type: (type) => commandTypes.includes(type as CommandType),
  id: isU64,
  timestamp: Number.isFinite,
  semaphore: (name) => typeof name === "string" && name.length <= maxNameLength && /^\/[^/]+$/.test(name),
  client: isClient,
  deadline: (deadline) => isExactly(deadlineChecks, deadline),
  acknowledged: (ids) => Array.isArray(ids) && ids.length <= maxAcknowledged && ids.every(isU64),
};

export const headerFields = Object.keys(headerChecks) as readonly (keyof CommandHeader)[];

/** True for an identity and nothing besides it. */
export function isClient(value: unknown): value is ClientIdentity {
  return isExactly(clientChecks, value);
}

/** The first field of the header that is missing or wrong in a message; what else is in it is not looked at. */
export function findWrongField(message: object): keyof CommandHeader | undefined {
  return firstWrong(headerChecks, message);
}

function firstWrong<T>(checks: Checks<T>, value: object): keyof T | undefined {
  for (const field in checks) {
    if (!checks[field]((value as T)[field])) return field;
  }
  return undefined;
}

function isExactly<T>(checks: Checks<T>, value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return firstWrong(checks, value) === undefined && Object.keys(value).length === Object.keys(checks).length;
}
