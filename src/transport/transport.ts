/**
 * The seam between the executor and whatever moves buckets between ranks. One file, and one compliance suite
 * (`test/transport/compliance/suite.ts`) that every implementation passes as far as its capabilities go; beyond
 * them the suite tests that it refuses.
 *
 * The life of it: a factory makes a `Transport`; `open` joins a session; the session registers memory and prepares
 * programs; what is prepared is posted many times, one round at a time.
 */
import type { Observable } from "rxjs";
import type { TensorBusError } from "../errors.ts";
import type { Memory, MemoryKind, TensorMemory } from "../memory/memory.ts";
import type { Channels } from "../plan/planner/channels.ts";
import type { Program } from "../plan/planner/program.ts";
import type { Store } from "../store/store.ts";

export interface TransportCapabilities {
  /** The kinds of memory that a binding may lie in. */
  readonly memory: readonly MemoryKind[];
  /** True if ranks may live on different hosts. */
  readonly crossHost: boolean;
  /** True if CRC-32C of buckets can be asked for. */
  readonly checksum: boolean;
}

export interface WaitOptions {
  readonly signal?: AbortSignal;
  /** Milliseconds until `TB_TIMEOUT`; default 30,000. */
  readonly timeoutMs?: number;
}

export interface OpenOptions extends WaitOptions {
  readonly rank: number;
  /** The ranks of the session are 0 to `world - 1`; connections are made to those that a program names. */
  readonly world: number;
  /** The store in which ranks publish their addresses. The caller keeps and closes it. */
  readonly store: Store;
  /** Sessions of different generations never talk to each other; default 0. */
  readonly generation?: number;
}

export interface Transport {
  readonly name: string;
  readonly capabilities: TransportCapabilities;
  /** Joins a session. Resolves once this rank can be reached; peers are connected at `prepare`. */
  open(options: OpenOptions): Promise<TransportSession>;
}

export interface TensorBinding {
  /** The index of the tensor in the plan's input. */
  readonly tensor: number;
  readonly source?: TensorMemory;
  readonly target?: TensorMemory;
}

/** The senders and receivers of a plan: an entry of each for every channel, in any order, those within a rank among them. */
export type PlanLinks = Pick<Channels, "count" | "srcRank" | "dstRank">;

export interface PrepareOptions extends WaitOptions {
  /**
   * The links of the whole plan, for transports whose ranks have to come together; asked for by those alone. Unless given,
   * those of this rank.
   */
  readonly links?: () => PlanLinks;
  /**
   * Ranks that this one keeps pace with beyond what the program exchanges with them, and they with it: neither of two linked
   * ranks completes a round that the other has not begun, and each hears of the other's failed rounds and of its end.
   */
  readonly linked?: readonly number[];
  /** Names the batch and direction: the same on all ranks, unique in the session. */
  readonly key: string;
  /** Send and check CRC-32C of every bucket; default false. Both ends must agree. */
  readonly checksum?: boolean;
}

/**
 * What happened to a session outside of any round: a peer was lost, a peer closed its session, or something was refused that belongs to nothing
 * prepared (`TB_AUTH`, `TB_VERSION`, `TB_PROTOCOL`: a stranger at the port).
 */
export type TransportEvent =
  | { readonly kind: "peerLost" | "peerLeft"; readonly rank: number; readonly error: TensorBusError }
  | { readonly kind: "fault"; readonly error: TensorBusError };

export interface TransportSession extends AsyncDisposable {
  readonly rank: number;
  /** Those of the transport that opened it. */
  readonly capabilities: TransportCapabilities;
  /** Completes when the session is closed. Nothing is kept for late subscribers. */
  readonly events$: Observable<TransportEvent>;
  /** Lets the session address this memory, until `unregister`. The same memory may be registered once. */
  register(memory: Memory): void;
  /** `TB_BUSY` while something prepared uses it. */
  unregister(memory: Memory): void;
  /**
   * Binds a program to this rank's tensors, connects the peers that it names, and checks with each of them that both
   * hold the same plan (`TB_PLAN_MISMATCH`). Every binding must lie in registered memory (`TB_REGION`).
   */
  prepare(
    program: Program,
    bindings: readonly TensorBinding[],
    options: PrepareOptions,
  ): Promise<PreparedTransfer>;
  /**
   * Refuses what no batch in GPU memory between any of these ranks could be, before there is one: `TB_DEVICE_SHARED` if
   * two of them stand on one GPU, and each can reach another only by what wants a GPU for itself. Absent if it could
   * refuse nothing.
   */
  checkRanks?(ranks: readonly number[], options?: WaitOptions): Promise<void>;
  /** Ends everything: rounds under way fail with `TB_CLOSED`, peers see an orderly end. A second call does nothing. */
  close(): Promise<void>;
}

export interface PostOptions extends WaitOptions {
  /** The number of the round, the same on all ranks; larger than the last one. Counted up unless given. */
  readonly round?: number;
}

/** The work of one rank in one round. */
export interface RoundReport {
  readonly round: number;
  readonly bytesSent: bigint;
  readonly bytesReceived: bigint;
  /** Bytes that this rank moved to itself. */
  readonly bytesCopied: bigint;
  readonly seconds: number;
  /** The most staging bytes in use at once. */
  readonly stagingHighWater: bigint;
}

/** A rank that a round waits for. */
export interface AwaitedRank {
  readonly rank: number;
  /** True if it has not begun the round, as far as is known here; else it has not finished what is between the two. */
  readonly absent: boolean;
}

export interface RoundProgress {
  readonly round: number;
  readonly bytesDone: bigint;
  readonly bytesTotal: bigint;
}

export interface PreparedTransfer extends AsyncDisposable {
  readonly key: string;
  /**
   * Runs one round. Settles only when nothing can touch the round's memory any more, whether it succeeded, failed
   * (`TB_PEER_LOST`, `TB_CHECKSUM`, … with `details.rank`, the rank where it began), was cancelled or timed out.
   * `TB_BUSY` while a round is under way. A round that another rank had given up before it was posted here fails with
   * `details.hadFailed`. `TB_TIMEOUT` lists `details.absent` and `details.waitsFor`, its `rank` is the lowest that was absent,
   * else the first that has not finished.
   */
  post(options?: PostOptions): Promise<RoundReport>;
  /** Progress of the round under way, or of the last one. It is cheap: it reads counters. */
  progress(): RoundProgress;
  /** Whom the round under way waits for, or the last one waited for when it failed. */
  awaited(): readonly AwaitedRank[];
  /** Bytes of staging memory that this rank takes for it, known before the first round. */
  readonly stagingBytes: bigint;
  /** By peer, the name of the transport that its buckets take. */
  readonly transports: ReadonlyMap<number, string>;
  release(): Promise<void>;
}
