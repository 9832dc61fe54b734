import { type DType, formatPlacement } from "../../layout/index.ts";
import type { NormalInput } from "../input/normalize.ts";
import type { Routing } from "../input/routing.ts";
import type { ChunkKind, Stage } from "../input/types.ts";
import { type Channels, type HostLinkStats, hostLinks, readChannels } from "./channels.ts";
import { Question, type Subject } from "./question.ts";

/** One rank's part. Bytes are payload, less the padding between chunks. */
export interface RankStats {
  readonly rank: number;
  /** Bytes that go to other ranks, and come from them, in all stages. */
  readonly sent: bigint;
  readonly received: bigint;
  /** Bytes that the rank copies from its own source, or reduced pieces, to its own target. */
  readonly copied: bigint;
  /** Bytes of contributions that it combines, its own included. */
  readonly reduced: bigint;
  /** The most staging memory of its program: slots to send, slots to receive, the pool of reduced pieces. */
  readonly stagingBytes: bigint;
  /** Chunks that begin or end there. */
  readonly chunks: number;
}

export interface StageStats {
  readonly stage: Stage;
  readonly chunks: number;
  readonly buckets: number;
  readonly bytes: bigint;
  readonly waves: number;
}

/** Tensors that share their geometry. */
export interface PatternStats {
  readonly pair: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly targetDtype: DType;
  readonly source: readonly string[];
  readonly target: readonly string[];
  readonly tensors: number;
  /** The name of the first of them. */
  readonly example: string;
  readonly strategy: Routing["strategy"];
  /** Which replicas exchange stripes. */
  readonly groups: Routing["groups"];
  /** Why this strategy was taken. */
  readonly reason: Routing["reason"];
  /** What the cost model expects of each way, in nanoseconds, if a topology let it choose. */
  readonly costs: Routing["costs"];
  /** The number of boxes of its first tensor. */
  readonly boxes: bigint;
  readonly chunks: bigint;
}

export interface PlanStats {
  readonly tensors: number;
  readonly chunks: number;
  readonly buckets: number;
  readonly waves: number;
  /** Bytes by kind of chunk. */
  readonly bytes: Readonly<Record<ChunkKind, bigint>>;
  readonly stages: readonly StageStats[];
  /** Every rank of a mesh, ascending. */
  readonly ranks: readonly RankStats[];
  /** The rank that sends most; the lowest of them. `undefined` if nothing is sent. */
  readonly busiest: number | undefined;
  /** What the busiest source rank sends over what source ranks send on average; 1 if nothing is sent. */
  readonly imbalance: number;
  /** What goes from host to host, or within one; empty without a topology, since every rank is then its own host. */
  readonly hosts: readonly HostLinkStats[];
  readonly patterns: readonly PatternStats[];
}

const kinds: readonly ChunkKind[] = ["copy", "send", "reduce"];
const stages: readonly Stage[] = [0, 1, 2];
const rankWords = 8;

/** The sums of a plan, from one walk over its chunks. */
export interface Summary {
  readonly stats: PlanStats;
  readonly channels: Channels;
}

export function sumUp(subject: Subject, routing: readonly Routing[]): Summary {
  const { input } = subject;
  const question = new Question(subject);
  try {
    question.ask((planner) => planner.admitSum());
    question.withChannels();
    const at = question.ask((planner) => planner.sum());
    const words = new BigInt64Array(question.planner.buffer, at, input.world * rankWords).slice();
    const of = (stage: Stage, kind: number, what: number) =>
      question.ask((planner) => planner.sumOfKind(stage, kind, what));
    const stageStats = stages.map(
      (stage): StageStats => ({
        stage,
        chunks: Number(kinds.reduce((sum, _, kind) => sum + of(stage, kind, 0), 0n)),
        buckets: Number(question.ask((planner) => planner.sumOfBuckets(stage))),
        bytes: kinds.reduce((sum, _, kind) => sum + of(stage, kind, 1), 0n),
        waves: question.ask((planner) => planner.stageWaves(stage)),
      }),
    );
    const bytes = Object.fromEntries(
      kinds.map((kind, number) => [kind, stages.reduce((sum, stage) => sum + of(stage, number, 1), 0n)]),
    ) as Record<ChunkKind, bigint>;
    const total = (what: "chunks" | "buckets" | "waves") =>
      stageStats.reduce((sum, stage) => sum + stage[what], 0);
    const ranks = rankStats(input, words);
    const channels = channelsOf(question, subject);
    const stats: PlanStats = {
      tensors: input.names.length,
      chunks: total("chunks"),
      buckets: total("buckets"),
      waves: total("waves"),
      bytes,
      stages: stageStats,
      ranks,
      ...balance(input, ranks),
      hosts: input.topology === undefined ? [] : hostLinks(channels, input.topology),
      patterns: patternStats(question, input, routing),
    };
    return { stats, channels };
  } finally {
    question.end();
  }
}

function channelsOf(question: Question, { input, table }: Subject): Channels {
  const words = new Uint32Array(table!.buffer);
  const at = question.ask((planner) => planner.linksAt());
  return readChannels(words, new BigInt64Array(question.planner.buffer, at), input.world);
}

function rankStats(input: NormalInput, words: BigInt64Array): RankStats[] {
  const known = new Set(input.meshes.flatMap((mesh) => [...mesh.ranks]));
  return [...known]
    .sort((a, b) => a - b)
    .map((rank) => {
      const [sent, received, copied, reduced, toSend, toReceive, pool, chunks] = words.subarray(
        rank * rankWords,
        (rank + 1) * rankWords,
      ) as unknown as readonly [bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint];
      return {
        rank,
        sent,
        received,
        copied,
        reduced,
        stagingBytes: toSend + toReceive + pool,
        chunks: Number(chunks),
      };
    });
}

function balance(input: NormalInput, ranks: readonly RankStats[]) {
  const sources = new Set(input.pairs.flatMap(({ source }) => [...source.mesh.ranks]));
  const senders = ranks.filter(({ rank }) => sources.has(rank));
  const sum = senders.reduce((total, { sent }) => total + sent, 0n);
  if (sum === 0n) return { busiest: undefined, imbalance: 1 };
  const busiest = senders.reduce((most, one) => (one.sent > most.sent ? one : most));
  return { busiest: busiest.rank, imbalance: (Number(busiest.sent) * senders.length) / Number(sum) };
}

function patternStats(question: Question, input: NormalInput, routing: readonly Routing[]): PatternStats[] {
  return input.patterns.map((pattern, index) => ({
    pair: input.pairs[pattern.pair]!.name,
    shape: pattern.shape,
    dtype: pattern.dtype,
    targetDtype: pattern.targetDtype,
    source: pattern.source.placements.map(formatPlacement),
    target: pattern.target.placements.map(formatPlacement),
    tensors: pattern.count,
    example: input.names[pattern.first]!,
    ...routing[index]!,
    boxes: question.ask((planner) => planner.count(pattern.first, 0)),
    chunks: question.ask((planner) => planner.count(pattern.first, 1)),
  }));
}
