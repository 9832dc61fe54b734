import { TensorBusError } from "../errors.ts";
import { maxRanks } from "../layout/index.ts";
import { type Explanation, explainTensor } from "./explain/explain.ts";
import { fail } from "./input/check.ts";
import { decodeInput, encodePlan, plannerOf } from "./input/codec.ts";
import { decide } from "./input/decisions.ts";
import { normalize } from "./input/normalize.ts";
import type { Routing } from "./input/routing.ts";
import type { Bucket, Chunk, PlanInput } from "./input/types.ts";
import {
  type ChannelStats,
  type Channels,
  eachChannel,
  type LinkMatrix,
  linkMatrix,
} from "./planner/channels.ts";
import { makeImage } from "./planner/image.ts";
import { listBuckets, listChunks } from "./planner/listing.ts";
import { lowerProgram, type StridesByTensor } from "./planner/lower.ts";
import type { Program } from "./planner/program.ts";
import { Question, type Subject } from "./planner/question.ts";
import { type PlanStats, type Summary, sumUp } from "./planner/stats.ts";
import { representatives, verifyTensors } from "./prove.ts";
import { makeSchedule, type Schedule } from "./schedule/schedule.ts";
import { verifyChunks, verifyRanks } from "./verify/verify.ts";

export interface RankOption {
  /** Only what begins or ends at this rank. */
  readonly rank?: number;
}

export interface VerifyOptions {
  /** Every chunk, however many there are. */
  readonly whole?: boolean;
}

export interface ProgramOptions {
  readonly strides?: StridesByTensor;
}

/** Every chunk, bucket, stage and dependency of a batch and direction, for all ranks; as plain bytes. */
export class Plan {
  /** SHA-256 of `bytes`, as hexadecimal text: equal on every rank that plans the same. */
  readonly digest: string;
  /** The canonical bytes: `docs/plan-format.md`. */
  readonly bytes: Uint8Array;
  readonly #subject: Subject;
  readonly #routing: readonly Routing[];
  #summary: Summary | undefined;
  /** What `input` gave last, as long as somebody holds it. */
  #input: WeakRef<PlanInput> | undefined;
  #schedule: Schedule | undefined;

  private constructor(subject: Subject, routing: readonly Routing[], bytes: Uint8Array, digest: string) {
    this.#subject = subject;
    this.#routing = routing;
    this.bytes = bytes;
    this.digest = digest;
  }

  /** Plans an input. The readings of strided shards are checked here; chunks are made when they are asked for. */
  static of(input: PlanInput): Plan {
    return Plan.#by(input);
  }

  static #by(input: PlanInput, planner?: number): Plan {
    const normal = normalize(input);
    const decisions = decide(normal, planner);
    const subject: Subject = { input: normal, image: makeImage(normal, decisions), table: undefined };
    new Question(subject).end();
    const { bytes, digest } = encodePlan(normal, decisions);
    return new Plan(subject, decisions.routing, bytes, digest);
  }

  /**
   * Reads canonical bytes. `TB_PLAN_FORMAT` if they are damaged, of another format, or of a planner that would answer
   * otherwise.
   */
  static load(bytes: Uint8Array): Plan {
    let plan: Plan;
    try {
      plan = Plan.#by(decodeInput(bytes), plannerOf(bytes));
    } catch (cause) {
      if (!(cause instanceof TensorBusError) || cause.code === "TB_PLAN_FORMAT") throw cause;
      throw new TensorBusError("TB_PLAN_FORMAT", `the plan is damaged: ${cause.message}`, { cause });
    }
    if (plan.bytes.length !== bytes.length || !plan.bytes.every((byte, index) => byte === bytes[index])) {
      throw fail("TB_PLAN_FORMAT", "the plan is damaged: planning its input gives another plan", {
        digest: plan.digest,
      });
    }
    return plan;
  }

  /** The input as the plan holds it: defaults filled in, meshes as they are. */
  get input(): PlanInput {
    const known = this.#input?.deref();
    if (known !== undefined) return known;
    const input = decodeInput(this.bytes);
    this.#input = new WeakRef(input);
    return input;
  }

  /** Chunks by (stage, wave, bucket, index). `TB_PLAN_TOO_LARGE` if they are more than `maxChunks`. */
  chunks(options: RankOption = {}): Generator<Chunk, void, undefined> {
    return listChunks(this.#subject, checkRank(options));
  }

  /** Buckets by (stage, wave, source, destination, sequence). `TB_PLAN_TOO_LARGE` as for `chunks`. */
  buckets(options: RankOption = {}): Generator<Bucket, void, undefined> {
    return listBuckets(this.#subject, checkRank(options));
  }

  /**
   * What the executor of `rank` runs. Local tensors are contiguous unless `strides` says how they lie; they are not in
   * the digest. A rank with nothing to do has an empty program. `TB_STRIDES` for strides that cannot be.
   */
  program(rank: number, options: ProgramOptions = {}): Program {
    if (!Number.isSafeInteger(rank) || rank < 0 || rank >= maxRanks) {
      throw new TypeError(`rank must be an integer from 0 to ${maxRanks - 1}, got ${String(rank)}`);
    }
    return lowerProgram(this.#subject, fromHex(this.digest), rank, options.strides);
  }

  /** How many chunks there are, counted without making any. */
  chunkCount(): bigint {
    const question = new Question(this.#subject);
    try {
      return question.ask((planner) => planner.countAll());
    } finally {
      question.end();
    }
  }

  /** Sums over all chunks, exact, with none of them kept; made once, when they are first asked for. */
  stats(): PlanStats {
    return this.#sums().stats;
  }

  /** What goes from rank to rank in each stage, as columns; from the same walk as `stats`. */
  channels(): Channels {
    return this.#sums().channels;
  }

  /** The channels one by one, by (stage, source, destination). */
  links(): Generator<ChannelStats, void, undefined> {
    return eachChannel(this.channels());
  }

  /** Bytes from rank to rank over all stages, an entry for each sender and receiver, if the world is small enough. */
  matrix(): LinkMatrix {
    return linkMatrix(this.channels());
  }

  /**
   * When each channel is expected to begin and end on the links of the plan's topology, and what no schedule can beat;
   * `undefined` without a topology. Made once.
   */
  schedule(): Schedule | undefined {
    const { topology } = this.#subject.input;
    if (topology === undefined) return undefined;
    this.#schedule ??= makeSchedule(this.#subject, this.channels(), topology);
    return this.#schedule;
  }

  #sums(): Summary {
    this.#summary ??= sumUp(this.#subject, this.#routing);
    return this.#summary;
  }

  /** The pattern of a tensor of the input: its index in `stats().patterns`. */
  patternOf(tensor: number): number {
    const { input } = this.#subject;
    const kind = input.kinds[input.tensorKinds[tensor] ?? -1];
    if (kind === undefined) throw new TypeError(`the plan has no tensor ${String(tensor)}`);
    return kind.pattern;
  }

  /** Says where each part of a rank's local tensors comes from and goes to, stage by stage, for one tensor of the input. */
  explain(tensor: number, rank: number): Explanation {
    const routing = this.#routing[this.patternOf(tensor)]!;
    return explainTensor(this.#subject, this.input, routing, tensor, checkRank({ rank })!);
  }

  /**
   * Proves the plan by code that shares nothing with the planner. `TB_PLAN_INVALID` if it does not hold.
   *
   * A plan of more than 2^20 chunks is proved by its patterns: all chunks of the first tensor of each, and of further
   * tensors up to 2^20 chunks, as long as that is much less than all. With `whole` every chunk of any plan is proved, rank
   * by rank if they are many; that takes microseconds a chunk.
   */
  verify({ whole = false }: VerifyOptions = {}): void {
    const { chunks, patterns } = this.stats();
    const most = Math.min(this.#subject.input.maxChunks, provedAtOnce);
    if (chunks <= most) {
      verifyChunks(this.input, this.chunks(), this.buckets());
    } else if (!whole && patterns.reduce((sum, one) => sum + Number(one.chunks), 0) * 4 <= chunks) {
      const tensors = representatives(this.#subject.input, patterns, provedAtOnce);
      verifyTensors(this.#subject, this.input, tensors);
    } else {
      verifyRanks(this.input, (rank) => ({ chunks: this.chunks({ rank }), buckets: this.buckets({ rank }) }));
    }
  }
}

/** The most chunks that `verify` takes at once, in about a GiB of memory; more are proved rank by rank. */
const provedAtOnce = 2 ** 20;

function fromHex(text: string): Uint8Array {
  return Uint8Array.from({ length: text.length / 2 }, (_, index) =>
    Number.parseInt(text.slice(index * 2, index * 2 + 2), 16),
  );
}

function checkRank({ rank }: RankOption): number | undefined {
  if (rank !== undefined && (!Number.isSafeInteger(rank) || rank < 0)) {
    throw new TypeError(`rank must be an integer of at least 0, got ${String(rank)}`);
  }
  return rank;
}

/** Plans the transfer of tensors between the sides of their pairs. */
export async function planTransfer(input: PlanInput): Promise<Plan> {
  return Plan.of(input);
}
