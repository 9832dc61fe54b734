import { type DType, dtypes, itemSize, type PartialOp } from "../../../src/layout/index.ts";

/** One nest of loops over runs of bytes. */
export interface Descriptor {
  readonly offset: number;
  readonly loops: readonly { readonly count: number; readonly stride: number }[];
  readonly run: number;
}

/** Where a chunk reads or writes: a buffer of this rank, a reduced piece, or the peer's. */
export type ProgramEnd =
  | { readonly kind: "buffer"; readonly buffer: number; readonly descriptor: Descriptor }
  | { readonly kind: "piece"; readonly piece: number }
  | { readonly kind: "peer" };

export interface ProgramChunk {
  readonly source: ProgramEnd;
  readonly destination: ProgramEnd;
  readonly elements: number;
  readonly types: { readonly source: DType; readonly wire: DType; readonly destination: DType };
  readonly reduce: boolean;
  readonly position: number;
  readonly tensor: number;
}

export interface ProgramBucket {
  readonly bytes: number;
  readonly channel: number;
  readonly chunks: readonly ProgramChunk[];
  readonly dependencies: readonly number[];
  readonly foldAfter: number | undefined;
  readonly completesFold: boolean;
}

export interface ProgramChannel {
  readonly stage: number;
  readonly direction: "local" | "send" | "receive";
  readonly peer: number;
  readonly wave: number;
  readonly turn: number;
  readonly buckets: readonly number[];
  readonly bytes: number;
  readonly fingerprint: bigint;
}

interface ProgramPiece {
  readonly tensor: number;
  readonly dtype: DType;
  readonly op: PartialOp;
  readonly elements: number;
  readonly divisor: number;
  readonly contributions: number;
  readonly readers: number;
  readonly poolBytes: number;
}

export interface ReadProgram {
  readonly rank: number;
  readonly digest: string;
  readonly bucketBytes: number;
  readonly bucketsInFlight: number;
  readonly peersInFlight: number;
  readonly sendStagingBytes: number;
  readonly receiveStagingBytes: number;
  readonly poolBytes: number;
  readonly sentBytes: number;
  readonly buffers: readonly {
    readonly tensor: number;
    readonly kind: "source" | "target";
    readonly dtype: DType;
    readonly span: number;
    readonly elements: number;
  }[];
  readonly channels: readonly ProgramChannel[];
  readonly buckets: readonly ProgramBucket[];
  readonly pieces: readonly ProgramPiece[];
}

const none = 0xffffffff;
const pieceBit = 0x80000000;
const ops = ["sum", undefined, "product", "max", "min"] as const;

function must(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`the program breaks its format: ${what}`);
}

/** Fields of a program at byte offsets; numbers beyond 2^53 do not occur in tests. */
class Fields {
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u8(at: number): number {
    return this.#view.getUint8(at);
  }

  u16(at: number): number {
    return this.#view.getUint16(at, true);
  }

  u32(at: number): number {
    return this.#view.getUint32(at, true);
  }

  u64(at: number): number {
    const value = this.raw(at);
    must(value <= BigInt(Number.MAX_SAFE_INTEGER), `a number beyond 2^53 at ${at}`);
    return Number(value);
  }

  raw(at: number): bigint {
    return this.#view.getBigUint64(at, true);
  }

  i64(at: number): number {
    const value = this.#view.getBigInt64(at, true);
    must(value >= 0n && value <= BigInt(Number.MAX_SAFE_INTEGER), `a number out of range at ${at}`);
    return Number(value);
  }
}

function dtypeAt(number: number): DType {
  const dtype = dtypes[number];
  must(dtype !== undefined, `element type ${number}`);
  return dtype;
}

/** Reads every table of a program by `docs/program-format.md`, and holds what that page says of a single program. */
export function readProgram(bytes: Uint8Array): ReadProgram {
  const fields = new Fields(bytes);
  must(fields.u32(0) === 0x47504254 && fields.u32(4) === 1 && fields.u32(12) === 0, "magic, version, flags");
  must(fields.u64(152) === bytes.length, "total bytes");
  const counts = [64, 68, 72, 76, 80, 84].map((at) => fields.u32(at));
  const [bufferCount, channelCount, bucketCount, chunkCount, pieceCount, dependencyCount] = counts as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const wordCount = fields.u64(88);
  const sections = [
    { at: fields.u64(96), bytes: bufferCount * 32 },
    { at: fields.u64(104), bytes: channelCount * 40 },
    { at: fields.u64(112), bytes: bucketCount * 40 },
    { at: fields.u64(120), bytes: chunkCount * 40 },
    { at: fields.u64(128), bytes: pieceCount * 40 },
    { at: fields.u64(136), bytes: dependencyCount * 4 },
    { at: fields.u64(144), bytes: wordCount * 8 },
  ];
  let end = 192;
  for (const section of sections.toSorted((a, b) => a.at - b.at || a.bytes - b.bytes)) {
    must(section.at === Math.ceil(end / 8) * 8, "sections that overlap, are not aligned, or leave a gap");
    must(
      bytes.subarray(end, section.at).every((byte) => byte === 0),
      "padding that is not zero",
    );
    end = section.at + section.bytes;
    must(end <= bytes.length, "a section beyond the end");
  }
  must(
    bytes.subarray(end).every((byte) => byte === 0) && bytes.length - end < 8,
    "bytes after the last section",
  );
  const table = (section: number, size: number, count: number): number[] =>
    Array.from({ length: count }, (_, index) => sections[section]!.at + index * size);
  const words = sections[6]!.at;

  const buffers = table(0, 32, bufferCount).map((at) => {
    must(fields.u8(at + 4) <= 1 && fields.u16(at + 6) === 0 && fields.raw(at + 24) === 0n, "a buffer");
    return {
      tensor: fields.u32(at),
      kind: fields.u8(at + 4) === 0 ? ("source" as const) : ("target" as const),
      dtype: dtypeAt(fields.u8(at + 5)),
      span: fields.u64(at + 8),
      elements: fields.u64(at + 16),
    };
  });
  const descriptorAt = (first: number): Descriptor => {
    must(first + 2 < wordCount, "a descriptor beyond the words");
    const word = (index: number): number => fields.i64(words + (first + index) * 8);
    const loopCount = word(1);
    must(loopCount <= 8 && first + 2 * loopCount + 2 < wordCount, "a descriptor of too many loops");
    const loops = Array.from({ length: loopCount }, (_, loop) => ({
      count: word(2 + 2 * loop),
      stride: word(3 + 2 * loop),
    }));
    return { offset: word(0), loops, run: word(2 + 2 * loopCount) };
  };
  const endAt = (value: number, descriptor: number, dtype: DType, elements: number): ProgramEnd => {
    must(value < pieceBit || descriptor === 0, "a descriptor of an end that has none");
    if (value === none) return { kind: "peer" };
    if (value >= pieceBit) {
      must(value - pieceBit < pieceCount, "a piece that is not there");
      return { kind: "piece", piece: value - pieceBit };
    }
    must(value < bufferCount, "a buffer that is not there");
    const found = descriptorAt(descriptor);
    const covered = found.loops.reduce((product, { count }) => product * count, found.run);
    must(found.run % itemSize(dtype) === 0 && found.run > 0, "a run that is no multiple of the element");
    must(covered === elements * itemSize(dtype), "a descriptor of another count of elements than its chunk");
    must(buffers[value]!.dtype === dtype, "a chunk of another type than its buffer");
    const last = found.loops.reduce((at, { count, stride }) => at + (count - 1) * stride, found.offset);
    must(last + found.run <= buffers[value]!.span, "a descriptor beyond the span of its buffer");
    return { kind: "buffer", buffer: value, descriptor: found };
  };
  const chunks = table(3, 40, chunkCount).map((at): ProgramChunk => {
    const elements = fields.u64(at + 16);
    const [source, wire, destination] = [24, 25, 26].map((field) => dtypeAt(fields.u8(at + field)));
    must(elements > 0 && fields.u8(at + 27) <= 1 && fields.u32(at + 36) === 0, "a chunk");
    return {
      source: endAt(fields.u32(at), fields.u32(at + 8), source!, elements),
      destination: endAt(fields.u32(at + 4), fields.u32(at + 12), destination!, elements),
      elements,
      types: { source: source!, wire: wire!, destination: destination! },
      reduce: fields.u8(at + 27) === 1,
      position: fields.u32(at + 28),
      tensor: fields.u32(at + 32),
    };
  });
  const buckets = table(2, 40, bucketCount).map((at): ProgramBucket => {
    const first = fields.u32(at + 12);
    const firstDependency = fields.u32(at + 20);
    const foldAfter = fields.u32(at + 28);
    must(fields.u32(at + 32) <= 1 && fields.u32(at + 36) === 0, "flags of a bucket");
    must(first + fields.u32(at + 16) <= chunkCount, "chunks beyond their table");
    must(firstDependency + fields.u32(at + 24) <= dependencyCount, "dependencies beyond their table");
    return {
      bytes: fields.u64(at),
      channel: fields.u32(at + 8),
      chunks: chunks.slice(first, first + fields.u32(at + 16)),
      dependencies: Array.from({ length: fields.u32(at + 24) }, (_, index) =>
        fields.u32(sections[5]!.at + (firstDependency + index) * 4),
      ),
      foldAfter: foldAfter === none ? undefined : foldAfter,
      completesFold: fields.u32(at + 32) === 1,
    };
  });
  for (const [firstAt, countAt, total] of [
    [12, 16, chunkCount],
    [20, 24, dependencyCount],
  ] as const) {
    const rows = table(2, 40, bucketCount).map(
      (at) => [fields.u32(at + firstAt), fields.u32(at + countAt)] as const,
    );
    const used = rows.filter(([, count]) => count > 0).sort(([a], [b]) => a - b);
    const next = used.reduce((row, [first, count]) => (first === row ? row + count : Number.NaN), 0);
    must(next === total, "a row that is in no bucket, or in two");
  }
  const channels = table(1, 40, channelCount).map((at): ProgramChannel => {
    const first = fields.u32(at + 12);
    const direction = (["local", "send", "receive"] as const)[fields.u8(at + 1)];
    must(direction !== undefined && fields.u16(at + 2) === 0, "a channel");
    const turn = fields.u32(at + 20);
    must(
      turn === 0 || (direction === "receive" && fields.u8(at) === 1),
      "a turn of what is not asked for in turns",
    );
    must(first + fields.u32(at + 16) <= bucketCount, "buckets beyond their table");
    return {
      stage: fields.u8(at),
      direction,
      peer: fields.u32(at + 4),
      wave: fields.u32(at + 8),
      turn,
      buckets: Array.from({ length: fields.u32(at + 16) }, (_, index) => first + index),
      bytes: fields.u64(at + 24),
      fingerprint: fields.raw(at + 32),
    };
  });
  const asked = channels.filter(({ direction, stage }) => direction === "receive" && stage === 1);
  const turns = asked.map(({ turn }) => turn).sort((a, b) => a - b);
  must(
    turns.every((turn, place) => turn === place),
    "turns that are not one for each channel",
  );
  const pieces = table(4, 40, pieceCount).map((at): ProgramPiece => {
    const op = ops[fields.u8(at + 5)];
    must(op !== undefined && fields.u16(at + 6) === 0, "a piece");
    return {
      tensor: fields.u32(at),
      dtype: dtypeAt(fields.u8(at + 4)),
      op,
      elements: fields.u64(at + 8),
      divisor: fields.u64(at + 16),
      contributions: fields.u32(at + 24),
      readers: fields.u32(at + 28),
      poolBytes: fields.u64(at + 32),
    };
  });
  return {
    rank: fields.u32(8),
    digest: Array.from(bytes.subarray(16, 48), (byte) => byte.toString(16).padStart(2, "0")).join(""),
    bucketBytes: fields.u64(48),
    bucketsInFlight: fields.u32(56),
    peersInFlight: fields.u32(60),
    sendStagingBytes: fields.u64(160),
    receiveStagingBytes: fields.u64(168),
    poolBytes: fields.u64(176),
    sentBytes: fields.u64(184),
    buffers,
    channels,
    buckets,
    pieces,
  };
}
