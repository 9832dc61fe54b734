import type { Program } from "../plan/planner/program.ts";

/** One chunk of a program: `docs/program-format.md`, "Chunk". Its ends are indices of buffers; the source may be none. */
export interface ProgramChunk {
  readonly source: number | undefined;
  readonly destination: number;
  readonly sourceDescriptor: BigInt64Array;
  readonly destinationDescriptor: BigInt64Array;
  readonly sameType: boolean;
}

/** Payload bytes, padding included: those that are sent, received, and copied within the rank. */
export interface ProgramTraffic {
  readonly bytesSent: bigint;
  readonly bytesReceived: bigint;
  readonly bytesCopied: bigint;
  /** By peer, what goes there and what comes from there. */
  readonly peers: ReadonlyMap<number, PeerTraffic>;
}

export interface PeerTraffic {
  readonly sent: bigint;
  readonly received: bigint;
}

const channelTableAt = 104;
const chunkTableAt = 120;
const wordCountAt = 88;
const wordsAt = 144;
const channelBytes = 40;
const chunkBytes = 40;
/** Ends above are pieces, or the peer's. */
const firstPiece = 0x80000000;

/** The chunks that write into a buffer of this rank, in the order of the program. */
export function* chunksIntoBuffers(program: Program): Generator<ProgramChunk> {
  const view = viewOf(program);
  const table = Number(view.getBigUint64(chunkTableAt, true));
  const words = wordsOf(program, view);
  for (let index = 0; index < program.chunkCount; index++) {
    const at = table + index * chunkBytes;
    const destination = bufferIndex(view.getUint32(at + 4, true));
    if (destination === undefined) continue;
    const source = bufferIndex(view.getUint32(at, true));
    const [sourceType, wireType, destinationType] = program.bytes.subarray(at + 24, at + 27);
    yield {
      source,
      destination,
      sourceDescriptor:
        source === undefined ? noDescriptor : descriptorAt(words, view.getUint32(at + 8, true)),
      destinationDescriptor: descriptorAt(words, view.getUint32(at + 12, true)),
      sameType: sourceType === wireType && wireType === destinationType,
    };
  }
}

export function trafficOf(program: Program): ProgramTraffic {
  const view = viewOf(program);
  const table = Number(view.getBigUint64(channelTableAt, true));
  const bytes = [0n, 0n, 0n];
  const peers = new Map<number, PeerTraffic>();
  for (let index = 0; index < program.channelCount; index++) {
    const at = table + index * channelBytes;
    const direction = view.getUint8(at + 1);
    const payload = view.getBigUint64(at + 24, true);
    bytes[direction] = bytes[direction]! + payload;
    if (direction === 0) continue;
    const peer = view.getUint32(at + 4, true);
    const { sent, received } = peers.get(peer) ?? { sent: 0n, received: 0n };
    peers.set(
      peer,
      direction === 1 ? { sent: sent + payload, received } : { sent, received: received + payload },
    );
  }
  return { bytesCopied: bytes[0]!, bytesSent: bytes[1]!, bytesReceived: bytes[2]!, peers };
}

const noDescriptor = new BigInt64Array(0);

function viewOf({ bytes }: Program): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function bufferIndex(end: number): number | undefined {
  return end < firstPiece ? end : undefined;
}

/** All descriptor words; a view if the bytes are aligned, which those of a planner are. */
function wordsOf({ bytes }: Program, view: DataView): BigInt64Array {
  const [start, count] = [
    Number(view.getBigUint64(wordsAt, true)),
    Number(view.getBigUint64(wordCountAt, true)),
  ];
  const aligned = (bytes.byteOffset + start) % 8 === 0;
  return aligned
    ? new BigInt64Array(bytes.buffer, bytes.byteOffset + start, count)
    : new BigInt64Array(bytes.slice(start, start + count * 8).buffer);
}

function descriptorAt(words: BigInt64Array, first: number): BigInt64Array {
  return words.subarray(first, first + 3 + 2 * Number(words[first + 1]));
}
