/**
 * The one error class of tensorbus and the one table of its codes. Codes are stable, messages are not. The C header
 * (`native/include/tensorbus.h`) repeats the numbers of the codes that native code can return, and
 * `docs/errors.md` documents each code; a test fails when the three differ.
 */

/** Exit codes of the command line: 0 done, 1 a check failed, 2 bad input, 3 environment, 4 a transfer failed. */
export type ExitCode = 1 | 2 | 3 | 4;

interface CodeEntry {
  /** The number that crosses the C and WebAssembly boundaries. */
  readonly number: number;
  /** The exit code of a command that ends with this error. */
  readonly exit: ExitCode;
  /** What it means, in one sentence. */
  readonly meaning: string;
}

export const errorCodes = {
  // 1xx: input of the planner
  TB_PLAN_INPUT: { number: 100, exit: 2, meaning: "The input of a plan is malformed." },
  TB_MESH: {
    number: 101,
    exit: 2,
    meaning: "A device mesh is malformed: sizes, ranks, or a selection in it.",
  },
  TB_PLACEMENT: {
    number: 102,
    exit: 2,
    meaning: "A placement does not fit its mesh or tensor; PyTorch rejects it too.",
  },
  TB_PARTIAL_OP: {
    number: 103,
    exit: 2,
    meaning: "A Partial operator is unknown, mixed, or not defined for the type.",
  },
  TB_PARTIAL_TARGET: { number: 104, exit: 2, meaning: "A target has the placement Partial." },
  TB_STRIDED_SHARD: {
    number: 105,
    exit: 2,
    meaning: "A StridedShard has two readings that differ for a planned shape, and none was named.",
  },
  TB_SHAPE: { number: 106, exit: 2, meaning: "A tensor's shape is out of range." },
  TB_DTYPE: {
    number: 107,
    exit: 2,
    meaning: "An element type is unknown, cannot be cast as asked, or is cut inside of a byte.",
  },
  TB_PLAN_TOO_LARGE: { number: 108, exit: 2, meaning: "More chunks were asked for than maxChunks allows." },
  TB_PLAN_FORMAT: {
    number: 109,
    exit: 2,
    meaning: "A saved plan or program is damaged, or has another format.",
  },
  TB_PLAN_INVALID: { number: 110, exit: 1, meaning: "A list of chunks is not a valid plan of its input." },
  TB_STRIDES: {
    number: 111,
    exit: 2,
    meaning: "The strides of a local tensor are negative or out of range.",
  },
  TB_TOPOLOGY: { number: 112, exit: 2, meaning: "A topology is malformed." },
  // 2xx: memory and executor
  TB_ALIAS: { number: 200, exit: 2, meaning: "Target memory overlaps other memory of the same batch." },
  TB_REGION: { number: 201, exit: 2, meaning: "An access lies outside of a registered region." },
  TB_UNSUPPORTED: { number: 202, exit: 2, meaning: "The transport cannot do what was asked." },
  TB_TENSOR_MISSING: { number: 203, exit: 2, meaning: "A tensor of the plan has no memory on this rank." },
  TB_NO_SPACE: { number: 204, exit: 4, meaning: "A file system or shared memory is full." },
  TB_NO_MEMORY: { number: 205, exit: 4, meaning: "Memory could not be allocated." },
  TB_QUARANTINED: { number: 206, exit: 4, meaning: "Memory is still in use by something that did not stop." },
  TB_SEAL: {
    number: 207,
    exit: 2,
    meaning: "Shared memory does not have the size or the seals that it must have.",
  },
  // 3xx: transports
  TB_TIMEOUT: { number: 300, exit: 4, meaning: "A deadline passed." },
  TB_CANCELLED: { number: 301, exit: 4, meaning: "The operation was cancelled." },
  TB_PEER_LOST: { number: 302, exit: 4, meaning: "A peer's process or connection ended." },
  TB_AUTH: { number: 303, exit: 4, meaning: "A peer does not know the shared secret." },
  TB_VERSION: { number: 304, exit: 4, meaning: "A peer speaks another protocol version." },
  TB_PROTOCOL: { number: 305, exit: 4, meaning: "A peer broke the wire protocol." },
  TB_CHECKSUM: { number: 306, exit: 4, meaning: "A checksum is wrong." },
  TB_ADDRESS_IN_USE: { number: 307, exit: 3, meaning: "A port is in use." },
  TB_CONNECT: { number: 308, exit: 4, meaning: "A peer could not be reached." },
  TB_CLOSED: { number: 309, exit: 2, meaning: "The object was closed." },
  TB_PLAN_MISMATCH: { number: 310, exit: 4, meaning: "Two ranks hold different plans." },
  TB_BUSY: { number: 311, exit: 2, meaning: "A round of this batch is still under way." },
  TB_SYSTEM: { number: 312, exit: 4, meaning: "A system call failed." },
  TB_INVALIDATED: {
    number: 313,
    exit: 4,
    meaning: "A prepared transfer became invalid: its memory or its session went away.",
  },
  TB_NCCL: { number: 314, exit: 4, meaning: "A call of NCCL failed." },
  TB_DEVICE_SHARED: {
    number: 315,
    exit: 2,
    meaning: "Two ranks that need NCCL use one GPU, and NCCL cannot tell them apart.",
  },
  TB_CUDA: { number: 316, exit: 4, meaning: "A call of the CUDA driver failed." },
  TB_ADDRESS: {
    number: 317,
    exit: 2,
    meaning:
      "An address to listen on, or one that others are to connect to, is missing, malformed or unknown.",
  },
  // 4xx: environment
  TB_NATIVE_MISSING: { number: 400, exit: 3, meaning: "There is no native library." },
  TB_LIBRARY: { number: 401, exit: 3, meaning: "A library is missing or has the wrong version." },
  TB_DEVICE: { number: 402, exit: 3, meaning: "This machine has no such GPU." },
  TB_ENVIRONMENT: {
    number: 403,
    exit: 3,
    meaning: "A variable that says which rank this process is, or of how many, is missing or malformed.",
  },

  // 5xx: models, specs, files
  TB_SPEC: { number: 500, exit: 2, meaning: "A spec is malformed." },
  TB_MODEL_CONFIG: { number: 501, exit: 2, meaning: "A model's config.json is malformed or unknown." },
  TB_SAFETENSORS: {
    number: 502,
    exit: 2,
    meaning: "A safetensors file is damaged or lies about its contents.",
  },
  TB_FILE: { number: 503, exit: 2, meaning: "A file is missing or cannot be read or written." },
  TB_BUDGET: { number: 504, exit: 1, meaning: "A plan exceeds a budget." },
  TB_VERIFY: { number: 505, exit: 1, meaning: "Moved data differ from what they should be." },
  TB_TENSOR_UNKNOWN: { number: 506, exit: 2, meaning: "No tensor of the plan has this name." },
  TB_RANK_EMPTY: { number: 507, exit: 2, meaning: "A rank holds nothing of this tensor, on either side." },
  TB_PARTS: { number: 508, exit: 2, meaning: "Parts of parameters do not fit together." },
  TB_PRESET: {
    number: 509,
    exit: 2,
    meaning: "A preset does not know the model or the option that is asked for, or does not support it.",
  },
  TB_CHECKPOINT: {
    number: 510,
    exit: 2,
    meaning: "A distributed checkpoint is damaged, or holds something that is refused.",
  },
  // 6xx: stores
  TB_STORE_LOST: { number: 600, exit: 4, meaning: "The store could not be reached any more." },
  TB_STORE_PROTOCOL: {
    number: 601,
    exit: 4,
    meaning: "The store sent an answer that its protocol does not allow.",
  },
  TB_STORE_VALUE: { number: 602, exit: 2, meaning: "A key or value does not fit the store." },
  TB_STORE_OPTIONS: { number: 603, exit: 2, meaning: "A store's URL, namespace or secret is malformed." },
  // 7xx: bus
  TB_AGENT_LOST: { number: 700, exit: 4, meaning: "The agent's process ended before it had answered." },
  TB_AGENT_UNRESPONSIVE: {
    number: 701,
    exit: 4,
    meaning: "The agent's process runs, but sends no heartbeats.",
  },
  TB_QUEUE_FULL: { number: 702, exit: 4, meaning: "The command queue has no room." },
  TB_QUEUE_STUCK: {
    number: 703,
    exit: 4,
    meaning: "Another process holds the write lock of a queue or state for too long.",
  },
  TB_EXISTS: { number: 704, exit: 2, meaning: "The object that is to be created exists already." },
  TB_CLIENT_LOST: {
    number: 705,
    exit: 4,
    meaning: "The client's process ended, and everything that it had registered ended with it.",
  },
  TB_COMMAND: { number: 706, exit: 2, meaning: "A command, or the answer to one, is malformed." },
  TB_BUS_FORMAT: {
    number: 707,
    exit: 3,
    meaning: "A folder of the bus holds files that are damaged, or that have another format or version.",
  },
  TB_FOREIGN: {
    number: 708,
    exit: 3,
    meaning: "A file, semaphore or folder of the bus belongs to another user, or is open to others.",
  },
  TB_PAIR_UNKNOWN: { number: 709, exit: 2, meaning: "No side of this pair is registered with the agent." },
  TB_PAIR_MISMATCH: { number: 710, exit: 2, meaning: "Ranks or sides of a pair do not agree about it." },
  TB_BATCH_UNKNOWN: { number: 711, exit: 2, meaning: "No batch of this id is registered with the agent." },
  TB_BATCH_MISMATCH: {
    number: 712,
    exit: 2,
    meaning: "Ranks or sides of a batch registered different tensors.",
  },
  TB_BUCKET_SIZE: { number: 713, exit: 2, meaning: "Two ranks of a batch name different bucket sizes." },
  TB_IN_DOUBT: { number: 714, exit: 4, meaning: "It is not known yet whether a staged round was committed." },
  TB_AGENT_RANK: { number: 715, exit: 2, meaning: "The agent on these paths runs another rank." },
  TB_NAMESPACE: {
    number: 716,
    exit: 3,
    meaning: "Agent and client run in different PID or time namespaces, or on different machines.",
  },
  TB_STALE_VERSION: {
    number: 717,
    exit: 4,
    meaning: "A transfer named an older version than the round that it would have joined.",
  },
} as const satisfies Record<string, CodeEntry>;

export type ErrorCode = keyof typeof errorCodes;

/** True for a text of others that is a code: names that every object has are none. */
export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(errorCodes, text);
}

interface TensorBusErrorOptions {
  /** The values that the message speaks of: the offending input, the rank, the pair. */
  readonly details?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

/** Every failure that a caller can meet at run time. A caller's programming mistake is a `TypeError`. */
export class TensorBusError extends Error {
  override readonly name = "TensorBusError";
  readonly code: ErrorCode;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, options: TensorBusErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }

  /** The exit code of a command that ends with this error. */
  get exitCode(): ExitCode {
    return errorCodes[this.code].exit;
  }
}

const byNumber = new Map<number, ErrorCode>(
  Object.entries(errorCodes).map(([code, entry]) => [entry.number, code as ErrorCode]),
);

/** The code of a number that came out of C or WebAssembly; `undefined` for a number of another version. */
export function errorCodeOf(number: number): ErrorCode | undefined {
  return byNumber.get(number);
}

const noDescriptors = new Set(["EMFILE", "ENFILE"]);

/** An error of Node.js that says that no file could be opened as `TB_SYSTEM`, with what to do; any other as it is. */
export function explained(error: unknown): unknown {
  const { code, message } = error instanceof Error ? (error as Error & { code?: unknown }) : {};
  if (typeof code !== "string" || !noDescriptors.has(code) || error instanceof TensorBusError) return error;
  const whose = code === "EMFILE" ? "this process" : "the machine";
  return new TensorBusError(
    "TB_SYSTEM",
    `${whose} has no file descriptors left (${message}): raise \`ulimit -n\`, or LimitNOFILE of the service`,
    { cause: error, details: { errnoName: code } },
  );
}
