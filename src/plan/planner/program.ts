import { TensorBusError } from "../../errors.ts";
import { type DType, dtypes } from "../../layout/index.ts";

/** One local tensor that a program touches: `docs/program-format.md`, "Buffer". */
export interface ProgramBuffer {
  readonly tensor: number;
  readonly kind: "source" | "target";
  readonly dtype: DType;
  /** Bytes from the first element to one past the last of the local tensor, whichever of them are touched. */
  readonly span: bigint;
}

const magic = 0x47504254;
const version = 1;
const headerBytes = 192;

/** The part of a plan that one rank runs, lowered to byte offsets in its own tensors; bound to memory at `prepare`. */
export class Program {
  readonly rank: number;
  /** The digest of the plan, as hexadecimal text. */
  readonly digest: string;
  readonly bytes: Uint8Array;
  readonly channelCount: number;
  readonly bucketCount: number;
  readonly chunkCount: number;
  readonly pieceCount: number;
  readonly buffers: readonly ProgramBuffer[];
  /** Ranks other than this one that it sends to or receives from, ascending. */
  readonly peers: readonly number[];
  /** The most staging memory that running it takes: slots for sending and receiving, and the pool of reduced pieces. */
  readonly stagingBytes: bigint;

  /** `TB_PLAN_FORMAT` if the bytes are no program of this version. */
  constructor(bytes: Uint8Array) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (bytes.length < headerBytes || view.getUint32(0, true) !== magic) {
      throw new TensorBusError("TB_PLAN_FORMAT", "these bytes are not a program");
    }
    if (view.getUint32(4, true) !== version) {
      throw new TensorBusError(
        "TB_PLAN_FORMAT",
        `the program has format ${view.getUint32(4, true)}, but this version reads format ${version}`,
        {
          details: { found: view.getUint32(4, true), supported: version },
        },
      );
    }
    if (view.getBigUint64(152, true) !== BigInt(bytes.length)) {
      throw new TensorBusError("TB_PLAN_FORMAT", "the program is truncated", {
        details: { bytes: bytes.length },
      });
    }
    this.bytes = bytes;
    this.rank = view.getUint32(8, true);
    this.digest = Array.from(bytes.subarray(16, 48), (byte) => byte.toString(16).padStart(2, "0")).join("");
    const bufferCount = view.getUint32(64, true);
    this.channelCount = view.getUint32(68, true);
    this.bucketCount = view.getUint32(72, true);
    this.chunkCount = view.getUint32(76, true);
    this.pieceCount = view.getUint32(80, true);
    this.stagingBytes =
      view.getBigUint64(160, true) + view.getBigUint64(168, true) + view.getBigUint64(176, true);
    const bufferTable = Number(view.getBigUint64(96, true));
    const channelTable = Number(view.getBigUint64(104, true));
    if (
      bufferTable + bufferCount * 32 > bytes.length ||
      channelTable + this.channelCount * 40 > bytes.length
    ) {
      throw new TensorBusError("TB_PLAN_FORMAT", "the program is damaged: a table reaches beyond its end");
    }
    this.buffers = Array.from({ length: bufferCount }, (_, index) => {
      const at = bufferTable + index * 32;
      return {
        tensor: view.getUint32(at, true),
        kind: view.getUint8(at + 4) === 0 ? ("source" as const) : ("target" as const),
        dtype: dtypes[view.getUint8(at + 5)]!,
        span: view.getBigUint64(at + 8, true),
      };
    });
    const peers = new Set<number>();
    for (let index = 0; index < this.channelCount; index++) {
      const at = channelTable + index * 40;
      if (view.getUint8(at + 1) !== 0) peers.add(view.getUint32(at + 4, true));
    }
    this.peers = [...peers].sort((a, b) => a - b);
  }
}
