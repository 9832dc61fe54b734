/** A program as the virtual transport runs it: `docs/program-format.md`. */
import { type DType, dtypes } from "../../../src/layout/index.ts";
import type { Program } from "../../../src/plan/planner/program.ts";

export interface End {
  /** Index of a buffer. */
  readonly buffer: number;
  readonly descriptor: BigInt64Array;
  readonly dtype: DType;
}

export interface ChunkMove {
  /** Absent where it is the peer's. */
  readonly from: End | undefined;
  readonly to: End | undefined;
  readonly elements: number;
  readonly wire: DType;
}

export interface ChannelMoves {
  /** The same at both ends, and of no other channel between the two. */
  readonly name: string;
  readonly direction: "local" | "send" | "receive";
  readonly peer: number;
  readonly buckets: readonly (readonly ChunkMove[])[];
  readonly bytes: bigint;
}

const noEnd = 0xffffffff;
const firstPiece = 0x80000000;
const directions = ["local", "send", "receive"] as const;

const known = new WeakMap<Program, readonly ChannelMoves[]>();

/** Throws for programs that reduce, or that send what they have received: nobody simulates those. */
export function readProgram(program: Program): readonly ChannelMoves[] {
  const moves = known.get(program) ?? readMoves(program);
  known.set(program, moves);
  return moves;
}

function readMoves(program: Program): readonly ChannelMoves[] {
  const { bytes, channelCount, rank } = program;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const at = (offset: number) => Number(view.getBigUint64(offset, true));
  const [channels, buckets, chunks, words] = [at(104), at(112), at(120), at(144)];
  const wordAt = (index: number) => view.getBigInt64(words + 8 * index, true);
  const descriptorAt = (first: number) => {
    const length = 3 + 2 * Number(wordAt(first + 1));
    return BigInt64Array.from({ length }, (_, index) => wordAt(first + index));
  };
  const endOf = (chunk: number, field: number, type: number): End | undefined => {
    const buffer = view.getUint32(chunk + field, true);
    if (buffer === noEnd) return undefined;
    if (buffer >= firstPiece) throw new Error("the virtual transport reduces nothing");
    const descriptor = descriptorAt(view.getUint32(chunk + field + 8, true));
    return { buffer, descriptor, dtype: dtypes[view.getUint8(chunk + type)]! };
  };
  const chunkAt = (index: number): ChunkMove => {
    const chunk = chunks + 40 * index;
    return {
      from: endOf(chunk, 0, 24),
      to: endOf(chunk, 4, 26),
      elements: at(chunk + 16),
      wire: dtypes[view.getUint8(chunk + 25)]!,
    };
  };
  const bucketAt = (index: number) => {
    const bucket = buckets + 40 * index;
    if (view.getUint32(bucket + 24, true) > 0) throw new Error("the virtual transport sends on nothing");
    const first = view.getUint32(bucket + 12, true);
    return Array.from({ length: view.getUint32(bucket + 16, true) }, (_, chunk) => chunkAt(first + chunk));
  };
  return Array.from({ length: channelCount }, (_, index) => {
    const row = channels + 40 * index;
    const direction = directions[view.getUint8(row + 1)]!;
    const peer = view.getUint32(row + 4, true);
    const [from, to] = direction === "receive" ? [peer, rank] : [rank, peer];
    const first = view.getUint32(row + 12, true);
    return {
      name: `${view.getUint8(row)} ${from} ${to}`,
      direction,
      peer,
      buckets: Array.from({ length: view.getUint32(row + 16, true) }, (_, bucket) =>
        bucketAt(first + bucket),
      ),
      bytes: view.getBigUint64(row + 24, true),
    };
  });
}
