/**
 * What a client asks of its agent: one MessagePack map for each command, checked where it is made and again where it is
 * read. Nothing in a message is more than data.
 */
import { Packr } from "msgpackr";
import * as z from "zod";
import { isErrorCode, TensorBusError } from "../../errors.ts";
import { type CommandHeader, type CommandType, findWrongField, headerFields } from "./command-header.ts";
import { findNotPlain } from "./plain-values.ts";
import { maxTableLayouts, tensorTableSchema } from "./tensor-table.ts";

/** The most bytes of one command; 70,000 tensors with long names take about 7 MiB. */
export const maxCommandBytes = 64 * 2 ** 20;

/** What names a batch, the same on both sides. A whole number and the bigint of the same value are the same id. */
export type BatchId = string | number | bigint;

export const u64 = z
  .bigint()
  .min(0n)
  .max(2n ** 64n - 1n);
const name = z.string().min(1).max(4096);
/** Numbers travel as numbers as far as they are exact, and as 64-bit integers beyond. */
const batchId = z.union([
  name,
  z.int(),
  z
    .bigint()
    .min(-(2n ** 63n))
    .max(2n ** 64n - 1n),
]);

/** An id in the one form that `===` and a map's keys compare rightly. */
export function normalizeBatchId(id: BatchId): BatchId {
  const parsed = batchId.safeParse(id);
  if (!parsed.success) {
    throw new TensorBusError("TB_COMMAND", `${String(id)} is not a batch id: use text or a 64-bit integer`, {
      details: { batchId: id },
    });
  }
  const exact = typeof id === "bigint" && id >= Number.MIN_SAFE_INTEGER && id <= Number.MAX_SAFE_INTEGER;
  return exact ? Number(id) : id;
}

/** The id as text, distinct for distinct ids: text and number of the same digits are two. */
export function batchKey(id: BatchId): string {
  return typeof id === "string" ? `s:${id}` : `n:${id}`;
}

/** A shard with sizes has one for each coordinate of its mesh dimension. */
const placementCharacters = 2 ** 16;

export const layoutSchema = z.strictObject({
  mesh: z.strictObject({
    shape: z.array(z.int().min(1)).min(1).max(8),
    ranks: z.array(z.int().min(0)).max(2 ** 20),
    dimNames: z.array(z.string().max(256)).max(8).optional(),
  }),
  /** In their text form: `formatPlacement`. */
  placements: z.array(z.string().max(placementCharacters)).min(1).max(8),
  stridedShard: z.enum(["split", "order"]).optional(),
});
export type LayoutMessage = z.infer<typeof layoutSchema>;

/** How a side's tensors lie: all by one layout, or each by its own, which the tensors of a batch then name. */
export const sideLayoutSchema = z.union([layoutSchema, z.literal("tensors")]);
export type SideLayout = z.infer<typeof sideLayoutSchema>;

const sizeBytes = u64;
const cudaHandle = z.instanceof(Uint8Array).refine((handle) => handle.length === 64, "must have 64 bytes");
const regionSchema = z.discriminatedUnion("kind", [
  /** A sealed memfd of the client: its descriptor there, and what fstat says of it. */
  z.strictObject({
    kind: z.literal("shared"),
    fd: z.int().min(0),
    device: u64,
    inode: u64,
    bytes: sizeBytes,
  }),
  /** A CUDA IPC handle, the device by its UUID. */
  z.strictObject({
    kind: z.literal("cuda"),
    handle: cudaHandle,
    device: z.string().min(1).max(64),
    bytes: sizeBytes,
    /** IPC handles of events: a round begins after what `ready` stands for, and is recorded in `free` when it has ended. */
    ready: cudaHandle.optional(),
    free: cudaHandle.optional(),
  }),
  /** Memory of the agent's own process, known to the agent of the same process by this number. */
  z.strictObject({ kind: z.literal("host"), key: u64, bytes: sizeBytes }),
]);
export type RegionMessage = z.infer<typeof regionSchema>;

const bodies = {
  InitPair: {
    pair: name,
    local: name,
    remote: name,
    /** Ranks that the local side has in all. */
    worldSize: z
      .int()
      .min(1)
      .max(2 ** 20),
    /** Without one, rank i's whole tensor goes to rank i of the other side. */
    layout: sideLayoutSchema.optional(),
  },
  RegisterTensors: {
    batch: batchId,
    bucketBytes: z.int().min(1).optional(),
    /** When targets change: as bytes arrive, or all at once on all ranks. The same everywhere; default: the agent's. */
    commit: z.enum(["direct", "staged"]).optional(),
    /** Which tensors of the two sides belong together; default: what the other side says, else `exact`. */
    match: z.enum(["exact", "target", "common"]).optional(),
    regions: z.array(regionSchema).min(1).max(1_000_000),
    /** The layouts that tensors of the table name. */
    layouts: z.array(layoutSchema).max(maxTableLayouts).optional(),
    tensors: tensorTableSchema,
  },
  Transfer: {
    batch: batchId,
    direction: z.enum(["send", "recv"]),
    /** The version of the data: no round mixes two, and a call with an older one than its round's fails at once, alone. */
    version: u64.optional(),
    /** A call that names none is told which it got. */
    tellVersion: z.boolean().optional(),
    /** The instance of the registration that is meant; needed if one client has registered both sides. */
    instance: u64.optional(),
  },
  QueryStatus: {
    batch: batchId,
    instance: u64.optional(),
    /** If a round is ready: which it is, and the version that it carries. */
    tellVersion: z.boolean().optional(),
  },
  CleanupBatch: {
    batch: batchId,
    /** What the agent answered when it was registered: a batch that took the id later is another. */
    instance: u64,
  },
  /** Ends another command of the same client, wherever it is, with `TB_CANCELLED`; one that has ended stays as it is. */
  Cancel: { command: u64 },
} as const;

/** What a command of each type asks, beside its header. */
export const bodySchemas = {
  InitPair: z.object(bodies.InitPair),
  RegisterTensors: z.object(bodies.RegisterTensors),
  Transfer: z.object(bodies.Transfer),
  QueryStatus: z.object(bodies.QueryStatus),
  CleanupBatch: z.object(bodies.CleanupBatch),
  Cancel: z.object(bodies.Cancel),
} as const satisfies Record<CommandType, z.ZodType>;

/** What a command of that type asks, beside its header. */
export type CommandBody<T extends CommandType> = z.infer<(typeof bodySchemas)[T]>;
export type Command = {
  [T in CommandType]: CommandHeader & { readonly type: T } & CommandBody<T>;
}[CommandType];
export type CommandOf<T extends CommandType> = Extract<Command, { type: T }>;

// Plain maps that any MessagePack reader reads; integers of 64 bits come as bigint.
const packer = new Packr({ useRecords: false, mapsAsObjects: true, int64AsType: "bigint" });

/** MessagePack of a value of the bus. */
export function pack(value: unknown): Buffer {
  // The packer lends its own buffer; what it gives is a part of that, and is not written again.
  return packer.pack(value);
}

/** The value in those bytes; `TB_COMMAND` if they are not MessagePack, or more than plain data. */
export function unpack(bytes: Uint8Array): unknown {
  const wrong = findNotPlain(bytes);
  if (wrong !== undefined)
    throw new TensorBusError("TB_COMMAND", `a message is not plain MessagePack: ${wrong}`);
  try {
    return packer.unpack(bytes);
  } catch (cause) {
    throw new TensorBusError("TB_COMMAND", `a message is not MessagePack: ${(cause as Error).message}`, {
      cause,
    });
  }
}

function malformed(what: string, path: string, message: string): TensorBusError {
  return new TensorBusError("TB_COMMAND", `${what}: ${path}: ${message}`, { details: { path } });
}

/** Bytes of a checked command. `TB_COMMAND` for one that no agent would take. */
export function encodeCommand(command: Command): Buffer {
  const bytes = pack(checkCommand(command, `command ${command.type}`));
  if (bytes.length > maxCommandBytes) {
    const message = `command ${command.type} has ${bytes.length} bytes, and at most ${maxCommandBytes} are allowed`;
    throw new TensorBusError("TB_COMMAND", message, {
      details: { bytes: bytes.length, max: maxCommandBytes },
    });
  }
  return bytes;
}

/** The command in a value that `unpack` gave, all of it checked. `TB_COMMAND` for whatever does not fit. */
export function checkCommand(message: unknown, what = "a command"): Command {
  if (typeof message !== "object" || message === null) throw malformed(what, "it", "is not a map");
  const wrong = findWrongField(message);
  if (wrong !== undefined) throw malformed(what, wrong, "is missing or wrong");
  checkMembers((message as CommandHeader).type, message, headerFields.length, what);
  return message as Command;
}

/** A body that came without a header, all of it checked. `TB_COMMAND` for whatever does not fit. */
export function checkBody<T extends CommandType>(type: T, body: unknown): CommandBody<T> {
  if (typeof body !== "object" || body === null) throw malformed(type, "it", "is not a map");
  checkMembers(type, body, 0, `the body of a ${type}`);
  return body as CommandBody<T>;
}

function checkMembers(type: CommandType, message: object, others: number, what: string): void {
  const { success, data, error } = bodySchemas[type].safeParse(message);
  if (!success) {
    const issue = error.issues[0];
    throw malformed(what, issue?.path.join(".") || "it", issue?.message ?? "is wrong");
  }
  if (Object.keys(message).length !== others + Object.keys(data).length) {
    throw malformed(what, "it", `has members that a ${type} does not have`);
  }
}

/** The header of a checked command. */
export function headerOf({
  type,
  id,
  timestamp,
  semaphore,
  client,
  deadline,
  acknowledged,
}: CommandHeader): CommandHeader {
  return { type, id, timestamp, semaphore, client, deadline, acknowledged };
}

/** Only what says whose command it is: enough to answer one whose body is malformed. `undefined` if that is too. */
export function readHeader(message: unknown): CommandHeader | undefined {
  if (typeof message !== "object" || message === null || findWrongField(message) !== undefined)
    return undefined;
  return headerOf(message as CommandHeader);
}

const failureSchema = z.strictObject({
  code: z.string().refine(isErrorCode, "is not an error code"),
  message: z.string(),
});
const bytesMoved = z.bigint().min(0n);
const plannedSchema = z.union([
  /** How many of this side's tensors, over all of its ranks, travel: fewer than it has if `match` leaves some out. */
  z.strictObject({ digest: z.string(), tensors: z.int().min(0) }),
  z.strictObject({ refused: failureSchema }),
]);

/** What the agent answers to each command that did not fail. */
export const resultSchemas = {
  InitPair: z.strictObject({
    /** Ranks of both sides, ascending for a side without layout, else in the order of its mesh. */
    localRanks: z.array(z.int()),
    remoteRanks: z.array(z.int()),
  }),
  RegisterTensors: z.strictObject({
    /** For CleanupBatch. */
    instance: u64,
    /** How often the batch of this id was registered on both sides, this time included. */
    number: z.int(),
    /** Digests of the plans, and why a direction cannot be used. */
    send: plannedSchema,
    recv: plannedSchema,
  }),
  Transfer: z.strictObject({
    round: z.int(),
    epoch: z.int(),
    bytesSent: bytesMoved,
    bytesReceived: bytesMoved,
    bytesCopied: bytesMoved,
    seconds: z.number(),
    /** From the rate of earlier rounds; for the first from the plan's topology, if it has one. */
    predictedSeconds: z.number().optional(),
    /** A round that this rank had completed, or took no part in, has failed elsewhere since its last one. */
    failedBefore: z.strictObject({ round: z.int(), rank: z.int(), code: z.string() }).optional(),
    /** The version that the call named; or what the round carried, if the call wanted to be told. */
    version: u64.optional(),
    /** It wanted to be told, and the store did not say it in time: the round is complete all the same. */
    versionUnknown: z.literal(true).optional(),
  }),
  QueryStatus: z.strictObject({
    /** The transfer signal: all source ranks have posted a round that this rank has not completed. */
    ready: z.boolean(),
    /** The round that is ready, and the version that it carries, if a rank has named one; if the call wanted to be told. */
    pending: z.strictObject({ round: z.int(), version: u64.optional() }).optional(),
    /** Progress of the round under way on this rank, if there is one. */
    progress: z.strictObject({ round: z.int(), bytesDone: bytesMoved, bytesTotal: bytesMoved }).optional(),
  }),
  CleanupBatch: z.strictObject({
    /** False if that instance was gone already. */
    freed: z.boolean(),
  }),
  Cancel: z.strictObject({
    /** False if that command had ended already, or was never there. The command itself ends a moment later. */
    found: z.boolean(),
  }),
} as const;
export type CommandResult<T extends CommandType> = z.infer<(typeof resultSchemas)[T]>;
