import type { ChunkKind, LogicalBuffer } from "./types.ts";

/**
 * Chunks and buckets as numbers, without their ids: a bucket is named by its place in the columns, a chunk by its bucket
 * and its index there. That says all that `Chunk` and `Bucket` say, at a fraction of their time and memory.
 */
export interface PlanRows {
  readonly buckets: BucketRows;
  /** Hands over every chunk in turn. It is the same object each time: who wants to keep something copies it. */
  eachChunk(use: (row: ChunkRow) => void): void;
}

/** The buckets as columns. */
export interface BucketRows {
  readonly count: number;
  readonly stage: Uint8Array;
  readonly wave: Float64Array;
  readonly srcRank: Uint32Array;
  readonly dstRank: Uint32Array;
  /** The place in its channel. */
  readonly sequence: Uint32Array;
  /** Payload bytes on the wire, padding included. */
  readonly bytes: Float64Array;
  /** Bucket b waits for the buckets `waits[waitFirst[b]]` up to `waits[waitFirst[b + 1]]`. */
  readonly waitFirst: Uint32Array;
  readonly waits: Uint32Array;
}

/** A chunk whose bucket is a place in the columns. */
export interface ChunkRow {
  stage: number;
  wave: number;
  srcRank: number;
  dstRank: number;
  bucket: number;
  /** The place in its bucket. */
  index: number;
  tensor: number;
  kind: ChunkKind;
  from: LogicalBuffer;
  to: LogicalBuffer;
  srcOffsets: number[];
  dstOffsets: number[];
  lengths: number[];
  bytes: number;
}

export function emptyChunkRow(): ChunkRow {
  return {
    stage: 0,
    wave: 0,
    srcRank: 0,
    dstRank: 0,
    bucket: 0,
    index: 0,
    tensor: 0,
    kind: "copy",
    from: "source",
    to: "target",
    srcOffsets: [],
    dstOffsets: [],
    lengths: [],
    bytes: 0,
  };
}
