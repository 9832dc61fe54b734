import { BehaviorSubject, EMPTY, map, type Observable, of, Subject, switchMap, takeUntil, timer } from "rxjs";
import type { LocalStrides, PlanInput } from "../plan/input/types.ts";
import type { Program } from "../plan/planner/program.ts";
import type {
  AwaitedRank,
  PlanLinks,
  PostOptions,
  PreparedTransfer,
  PrepareOptions,
  RoundProgress,
  RoundReport,
  TransportSession,
} from "../transport/transport.ts";
import { type BatchTensors, bindBatch } from "./bind-batch.ts";
import { linksOf } from "./connect.ts";
import { type PeerTraffic, type ProgramTraffic, trafficOf } from "./program-chunks.ts";

/** What the executor needs of a `Plan`. */
export interface ExecutablePlan {
  readonly input: Pick<PlanInput, "pairs" | "tensors">;
  program(rank: number, options?: { readonly strides?: ReadonlyMap<number, LocalStrides> }): Program;
  channels(): PlanLinks;
}

export interface ExecutionOptions extends Omit<PrepareOptions, "links" | "linked"> {
  readonly tensors: BatchTensors;
  /** All ranks that run the plan: those that it leaves apart are linked (`linksOf`). Unless given, nobody is. */
  readonly ranks?: readonly number[];
  /** Milliseconds between two values of `progress$`; default 100. */
  readonly progressMs?: number;
}

/** What this rank will do in every round, known before the first. */
export interface ExecutionStats extends Omit<ProgramTraffic, "peers"> {
  /** The most staging memory that it takes. */
  readonly stagingBytes: bigint;
  /** By peer, what goes there and what comes from there, and the transport that takes it. */
  readonly peers: ReadonlyMap<number, PeerTraffic & { readonly transport: string }>;
}

/** Runs plans on the tensors of one rank. The session is the caller's: it opens, registers memory with and closes it. */
export interface Executor {
  /**
   * Binds this rank's part of a plan to its tensors and agrees on it with its peers. All memory must be registered with
   * the session. `TB_TENSOR_MISSING`, `TB_REGION` and `TB_ALIAS` name the tensor; the rest is that of
   * `TransportSession.prepare`.
   */
  prepare(plan: ExecutablePlan, options: ExecutionOptions): Promise<Execution>;
}

export function createExecutor(session: TransportSession): Executor {
  return {
    async prepare(plan, options) {
      const strides = stridesOf(options.tensors);
      const program = plan.program(session.rank, strides.size === 0 ? {} : { strides });
      const bindings = bindBatch(plan.input, program, options.tensors);
      let channels: PlanLinks | undefined;
      const links = () => {
        channels ??= plan.channels();
        return channels;
      };
      const { ranks = [] } = options;
      const linked = ranks.length < 2 ? [] : linksOf(links(), ranks, session.rank);
      const transfer = await session.prepare(program, bindings, { ...options, links, linked });
      return new Execution(transfer, program, linked, options.progressMs ?? 100);
    },
  };
}

/** A batch in one direction that is ready to run, one round at a time. */
export class Execution implements AsyncDisposable {
  readonly key: string;
  readonly stats: ExecutionStats;
  /** Ranks that keep pace with this one without exchanging anything with it. */
  readonly linked: readonly number[];
  /**
   * How far the round under way is, each `progressMs` while one runs and once at its end; completes on `release`. Only
   * who subscribes makes it ask.
   */
  readonly progress$: Observable<RoundProgress>;
  readonly #transfer: PreparedTransfer;
  readonly #running = new BehaviorSubject<"idle" | "running" | "ended">("idle");
  readonly #released = new Subject<void>();

  constructor(transfer: PreparedTransfer, program: Program, linked: readonly number[], progressMs: number) {
    this.key = transfer.key;
    this.linked = linked;
    this.stats = statsOf(program, transfer);
    this.#transfer = transfer;
    this.progress$ = this.#running.pipe(
      switchMap((state) => (state === "idle" ? EMPTY : state === "ended" ? of(0) : timer(0, progressMs))),
      map(() => transfer.progress()),
      takeUntil(this.#released),
    );
  }

  /** Runs one round; see `PreparedTransfer.post`. */
  async run(options?: PostOptions): Promise<RoundReport> {
    const round = this.#transfer.post(options);
    // What is refused because a round is under way is no round of its own.
    if (this.#running.value === "running") return round;
    this.#running.next("running");
    try {
      return await round;
    } finally {
      this.#running.next("ended");
    }
  }

  progress(): RoundProgress {
    return this.#transfer.progress();
  }

  /** Whom the round under way waits for; see `PreparedTransfer.awaited`. */
  awaited(): readonly AwaitedRank[] {
    return this.#transfer.awaited();
  }

  /** `TB_BUSY` while a round is under way. A second call does nothing. */
  async release(): Promise<void> {
    await this.#transfer.release();
    this.#released.next();
    this.#released.complete();
  }

  /** Cancels a round under way, awaits its end, and releases. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#transfer[Symbol.asyncDispose]();
    this.#released.next();
    this.#released.complete();
  }
}

function statsOf(program: Program, { stagingBytes, transports }: PreparedTransfer): ExecutionStats {
  const traffic = trafficOf(program);
  const peers = [...traffic.peers].map(
    ([rank, bytes]) => [rank, { ...bytes, transport: transports.get(rank)! }] as const,
  );
  return { ...traffic, peers: new Map(peers), stagingBytes };
}

function stridesOf(tensors: BatchTensors): Map<number, LocalStrides> {
  const strides = new Map<number, LocalStrides>();
  for (const [tensor, memory] of tensors)
    if (memory.strides !== undefined) strides.set(tensor, memory.strides);
  return strides;
}
