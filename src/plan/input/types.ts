import type { DType, Layout, StridedShardReading } from "../../layout/index.ts";

/** Two named sides between which tensors travel. This direction: from `source` to `target`. */
export interface PairInput {
  readonly source: Layout;
  readonly target: Layout;
}

/**
 * Keeps of mesh dimension `dim` the one coordinate that owns `index` when `of` things are sharded over it by `Shard`
 * (chunks of ceil(of / size)), or by `sizes`. The dimension stays, with size 1, and cuts nothing more.
 */
export interface SelectInput {
  readonly dim: number;
  readonly index: number;
  readonly of: number;
  /** How many of the things each coordinate owns; the sum is `of`. */
  readonly sizes?: readonly number[];
}

export interface TensorSideInput {
  readonly select?: SelectInput;
  /** Overrides the layout's reading for this tensor. */
  readonly stridedShard?: StridedShardReading;
}

export interface TensorInput {
  readonly name: string;
  readonly pair: string;
  /** The global shape: 0 to 8 dimensions, sizes of 0 and more. */
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** The element type on the target; `dtype` unless given. */
  readonly targetDtype?: DType;
  readonly source?: TensorSideInput;
  readonly target?: TensorSideInput;
}

/** Says where ranks stand and how fast links are; integers, part of the digest. */
export interface TopologyInput {
  /** Rank r stands on host floor(r / ranksPerHost) … */
  readonly ranksPerHost?: number;
  /** … or on host `hosts[r]`. */
  readonly hosts?: readonly number[];
  /** How fast a rank's link within its host is, and its link to other hosts; each way at once. */
  readonly hostMBps: number;
  readonly networkMBps: number;
  readonly latencyUs: number;
  /** Hosts between which a rank's traffic is faster or slower than that; twice the same host is within it. */
  readonly links?: readonly HostLinkInput[];
}

/** How fast any rank of one host exchanges bytes with any rank of the other, either way. */
export interface HostLinkInput {
  readonly hosts: readonly [number, number];
  readonly MBps: number;
}

export type Strategy = "auto" | "direct" | "striped";

export interface PlanInput {
  readonly pairs: Readonly<Record<string, PairInput>>;
  readonly tensors: readonly TensorInput[];
  /** The most payload bytes of a bucket: 4 KiB to 1 GiB, default 8 MiB. */
  readonly bucketBytes?: number;
  /** The most staged buckets of a channel: default 2. */
  readonly bucketsInFlight?: number;
  /** The most channels of one wave at a receiver: default 4. */
  readonly peersInFlight?: number;
  readonly strategy?: Strategy;
  readonly topology?: TopologyInput;
  /** The most chunks that `chunks()` yields: default 2^22. */
  readonly maxChunks?: number;
}

/** What a plan depends on beside what travels: how much at once, by which way, over which links. */
export type PlanOptions = Pick<PlanInput, "strategy" | "topology" | "bucketsInFlight" | "peersInFlight">;

export type ChunkKind = "copy" | "send" | "reduce";
export type LogicalBuffer = "source" | "target" | "reduced";

/** `0` reduce, `1` cross, `2` fanout. */
export type Stage = 0 | 1 | 2;

/**
 * One box of one tensor that goes from one rank to one rank. Offsets and lengths are in elements, in the index space of
 * the named local buffer (one entry a tensor dimension).
 */
export interface Chunk {
  readonly id: string;
  readonly stage: Stage;
  readonly kind: ChunkKind;
  readonly srcRank: number;
  readonly dstRank: number;
  /** The index of the tensor in the input. */
  readonly tensor: number;
  readonly from: LogicalBuffer;
  readonly to: LogicalBuffer;
  readonly srcOffsets: readonly bigint[];
  readonly dstOffsets: readonly bigint[];
  readonly lengths: readonly bigint[];
  /** Payload bytes on the wire, less padding. */
  readonly bytes: bigint;
  /** The id of its bucket. */
  readonly bucket: string;
  readonly wave: number;
}

/** The unit on the wire: chunks of one channel. */
export interface Bucket {
  /** `stage:srcRank:dstRank:sequence`; a chunk's id is `bucket:index`. */
  readonly id: string;
  readonly stage: Stage;
  readonly wave: number;
  readonly srcRank: number;
  readonly dstRank: number;
  /** Payload bytes on the wire, padding included. */
  readonly bytes: bigint;
  readonly waitsFor: readonly string[];
}

/** Strides of this rank's local tensors, in elements, one entry a dimension; contiguous if absent. */
export interface LocalStrides {
  readonly source?: readonly number[];
  readonly target?: readonly number[];
}
