/**
 * The sessions and transfers of `native/include/tensorbus.h`: the declarations as data, and one typed function for each.
 * Structures are written and read at fixed offsets; a test compares those with the C compiler's.
 */
import { createHash } from "node:crypto";
import type { TensorBusError } from "../errors.ts";
import { type Carrier, carrierMask, encodeMembers, type Member, transferFlags } from "./carriers.ts";
import { parseUuid, useKernels } from "./cuda.ts";
import { readError } from "./error.ts";
import { declareNative } from "./native.ts";

const native = declareNative({
  tb_hub_create: ["out u64"],
  tb_hub_destroy: ["u64"],
  tb_session_open: ["pointer", "out u64", "out i32"],
  tb_session_port: ["u64", "out u32"],
  tb_session_set_peer: ["u64", "i32", "string", "u32"],
  tb_session_stop: ["u64"],
  tb_session_close: ["u64"],
  tb_session_register: ["u64", "u64", "u64"],
  tb_session_unregister: ["u64", "u64", "u64"],
  tb_session_next_event: ["u64", "pointer"],
  tb_session_handshake: ["u64", "u64", "pointer", "u32"],
  // biome-ignore format: one line a function
  tb_transfer_prepare: ["u64", "string", "pointer", "u64", "pointer", "u32", "u32", "u64", "pointer", "u32", "out u64"],
  tb_transfer_attach: ["u64", "u64", "u64"],
  tb_transfer_check_peers: ["u64", "u64"],
  tb_transfer_attached: ["u64", "u64", "out u32"],
  tb_transfer_post: ["u64", "u64", "u64", "u64"],
  tb_transfer_post_cancelled: ["u64", "u64", "u64"],
  tb_transfer_cancel: ["u64", "u64", "i32"],
  tb_transfer_progress: ["u64", "u64", "out u64", "out u64", "out u64", "out u64"],
  tb_transfer_waits: ["u64", "u64", "pointer", "pointer", "u32", "out u32"],
  tb_transfer_release: ["u64", "u64"],
});

/** Sizes and offsets of the structures that cross the boundary, in bytes. */
export const sessionStructs = {
  tb_session_options: {
    size: 168,
    struct_bytes: 0,
    kind: 4,
    rank: 8,
    world: 12,
    generation: 16,
    hub: 24,
    connections: 32,
    io_threads: 36,
    peer_timeout_ms: 40,
    quiesce_ms: 44,
    listen_port: 48,
    carriers: 52,
    listen_host: 56,
    name_space: 120,
    device: 152,
  },
  tb_event: {
    size: 880,
    kind: 0,
    transfer: 8,
    round: 16,
    connection: 24,
    bytes_sent: 32,
    bytes_received: 40,
    bytes_copied: 48,
    nanoseconds: 56,
    staging_high_water: 64,
    handshake_role: 72,
    handshake_step: 76,
    handshake_hello: 80,
    handshake_proof: 336,
    error: 368,
  },
  tb_binding: { size: 16, address: 0, bytes: 8 },
} as const;

/** The most bytes of a numeric address: the header's `listen_host`, less its terminator. */
const maxHostBytes = 63;
const helloBytes = 128;
const proofBytes = 32;
const waitStates = { absent: 1 } as const;
const transportKinds = { memory: 0, tcp: 1 } as const;
/** What means nothing within a process, but must be in range. */
const withinProcess = { connections: 1, peerTimeoutMs: 10_000 } as const;

interface CommonSessionOptions {
  readonly rank: number;
  readonly world: number;
  readonly generation: bigint;
  readonly ioThreads: number;
  readonly quiesceMs: number;
  /** The carriers that may move buckets between this rank and its peers; the stream alone unless given. */
  readonly carriers?: readonly Carrier[];
  /** The UUID of the GPU that all registered memory lies on; memory of the host unless given. */
  readonly device?: string;
}
interface MemorySessionOptions extends CommonSessionOptions {
  readonly kind: "memory";
  readonly hub: bigint;
}
interface TcpSessionOptions extends CommonSessionOptions {
  readonly kind: "tcp";
  readonly connections: number;
  readonly peerTimeoutMs: number;
  readonly listenHost: string;
  readonly listenPort: number;
  readonly namespace: string;
}
export type NativeSessionOptions = MemorySessionOptions | TcpSessionOptions;

export interface NativeBinding {
  /** The address of the first element. */
  readonly address: bigint;
  /** From there to the end of the memory that may be touched. */
  readonly bytes: bigint;
}

/** A connection asks for this side's proof, or for a verdict on the peer's. */
export interface HandshakeEvent {
  readonly kind: "handshake";
  readonly connection: bigint;
  /** 0: this side connected, 1: this side accepted. */
  readonly role: 0 | 1;
  readonly step: "prove" | "check";
  readonly hellos: { readonly connecting: Uint8Array; readonly accepting: Uint8Array };
  /** The proof that the peer sent, if it is to be checked. */
  readonly proof: Uint8Array;
}

/** The end of a prepare or a round. */
export interface TransferEvent {
  readonly kind: "prepared" | "round";
  readonly transfer: bigint;
  readonly round: bigint;
  readonly bytesSent: bigint;
  readonly bytesReceived: bigint;
  readonly bytesCopied: bigint;
  readonly nanoseconds: bigint;
  readonly stagingHighWater: bigint;
  /** Why it failed; absent if it did not. */
  readonly error: TensorBusError | undefined;
}

interface NoticeEvent {
  readonly kind: "peerLost" | "peerLeft" | "fault";
  readonly error: TensorBusError;
}

/** Nothing of a stopped session runs any more. */
interface EndedEvent {
  readonly kind: "ended";
}

export type NativeEvent = HandshakeEvent | TransferEvent | NoticeEvent | EndedEvent;

interface TransferOptions {
  readonly key: string;
  readonly program: Uint8Array;
  readonly bindings: readonly NativeBinding[];
  readonly checksum: boolean;
  readonly timeoutNs: bigint;
  /** The ranks that begin its rounds together or are linked, ascending, this one among them; empty if there are none. */
  readonly members?: readonly Member[];
}

interface TransferProgress {
  readonly round: bigint;
  readonly bytesDone: bigint;
  readonly bytesTotal: bigint;
  /** The most staging memory that the transfer takes. */
  readonly stagingBytes: bigint;
}

/** The place where sessions of the memory transport meet. */
export function createHub(): bigint {
  return native.tb_hub_create();
}

export function destroyHub(hub: bigint): void {
  native.tb_hub_destroy(hub);
}

/** The caller closes the descriptor after the session. */
export function openSession(options: NativeSessionOptions): { session: bigint; eventDescriptor: number } {
  if (options.device !== undefined) useKernels();
  const [session, eventDescriptor] = native.tb_session_open(encodeSessionOptions(options));
  return { session, eventDescriptor };
}

export function sessionPort(session: bigint): number {
  return native.tb_session_port(session);
}

/** `host` is a numeric address. */
export function setPeer(session: bigint, rank: number, host: string, port: number): void {
  native.tb_session_set_peer(session, rank, host, port);
}

/** Begins the end, which an `ended` event tells; only `nextEvent` and `closeSession` may follow. */
export function stopSession(session: bigint): void {
  native.tb_session_stop(session);
}

/** Blocks until the session's threads are gone: no time after `ended`, and at most its `quiesceMs`. */
export function closeSession(session: bigint): void {
  native.tb_session_close(session);
}

export function registerMemory(session: bigint, address: bigint, bytes: bigint): void {
  native.tb_session_register(session, address, bytes);
}

export function unregisterMemory(session: bigint, address: bigint, bytes: bigint): void {
  native.tb_session_unregister(session, address, bytes);
}

const eventBytes = Buffer.alloc(sessionStructs.tb_event.size);

/** The next event, or `undefined` if there is none. */
export function nextEvent(session: bigint): NativeEvent | undefined {
  native.tb_session_next_event(session, eventBytes);
  return decodeEvent(eventBytes);
}

/** Answers a handshake event: with this side's proof, or with the verdict on the peer's. */
export function answerHandshake(
  session: bigint,
  connection: bigint,
  answer: { readonly proof: Uint8Array } | { readonly accept: boolean },
): void {
  const proof = "proof" in answer ? answer.proof : new Uint8Array(proofBytes);
  const accept = "proof" in answer || answer.accept ? 1 : 0;
  native.tb_session_handshake(session, connection, proof, accept);
}

/** Starts it; the end is a `prepared` event. */
export function prepareTransfer(session: bigint, options: TransferOptions): bigint {
  const { key, program, bindings, checksum, timeoutNs, members = [] } = options;
  return native.tb_transfer_prepare(
    session,
    key,
    program,
    BigInt(program.length),
    encodeBindings(bindings),
    bindings.length,
    checksum ? transferFlags.checksum : 0,
    timeoutNs,
    encodeMembers(members),
    members.length,
  );
}

/** NCCL: binds what is prepared to a communicator of those who join; `true` of `isAttached` once it can run. */
export function attachTransfer(session: bigint, transfer: bigint, communicator: bigint): void {
  native.tb_transfer_attach(session, transfer, communicator);
}

/** Throws if a peer prepares anew what is prepared here, as after it was found at another place than was said. */
export function checkTransferPeers(session: bigint, transfer: bigint): void {
  native.tb_transfer_check_peers(session, transfer);
}

export function isAttached(session: bigint, transfer: bigint): boolean {
  return native.tb_transfer_attached(session, transfer) !== 0;
}

/** Starts it; the end is a `round` event. */
export function postTransfer(session: bigint, transfer: bigint, round: bigint, timeoutNs: bigint): void {
  native.tb_transfer_post(session, transfer, round, timeoutNs);
}

/** Begins a round and cancels it before a byte of it moves. */
export function postCancelledTransfer(session: bigint, transfer: bigint, round: bigint): void {
  native.tb_transfer_post_cancelled(session, transfer, round);
}

/** Asks for the end of what is under way; its event still comes. */
export function cancelTransfer(session: bigint, transfer: bigint, code: number): void {
  native.tb_transfer_cancel(session, transfer, code);
}

export function transferProgress(session: bigint, transfer: bigint): TransferProgress {
  const [round, bytesDone, bytesTotal, stagingBytes] = native.tb_transfer_progress(session, transfer);
  return { round, bytesDone, bytesTotal, stagingBytes };
}

/** Whom the round under way waits for, or the last one waited for when it failed; `most` peers have a part in it. */
export function transferWaits(
  session: bigint,
  transfer: bigint,
  most: number,
): { rank: number; absent: boolean }[] {
  const ranks = new Int32Array(Math.max(1, most));
  const states = new Uint32Array(ranks.length);
  const count = native.tb_transfer_waits(session, transfer, ranks, states, ranks.length);
  return Array.from({ length: Math.min(count, ranks.length) }, (_, index) => ({
    rank: ranks[index]!,
    absent: states[index] === waitStates.absent,
  }));
}

export function releaseTransfer(session: bigint, transfer: bigint): void {
  native.tb_transfer_release(session, transfer);
}

function encodeSessionOptions(options: NativeSessionOptions): Buffer {
  const at = sessionStructs.tb_session_options;
  const bytes = Buffer.alloc(at.size);
  bytes.writeUInt32LE(at.size, at.struct_bytes);
  bytes.writeUInt32LE(transportKinds[options.kind], at.kind);
  bytes.writeInt32LE(options.rank, at.rank);
  bytes.writeInt32LE(options.world, at.world);
  bytes.writeBigUInt64LE(options.generation, at.generation);
  bytes.writeUInt32LE(options.ioThreads, at.io_threads);
  bytes.writeUInt32LE(options.quiesceMs, at.quiesce_ms);
  if (options.device !== undefined) bytes.set(parseUuid(options.device), at.device);
  bytes.writeUInt32LE(carrierMask(options.carriers ?? []), at.carriers);
  const { connections, peerTimeoutMs } = options.kind === "tcp" ? options : withinProcess;
  bytes.writeUInt32LE(connections, at.connections);
  bytes.writeUInt32LE(peerTimeoutMs, at.peer_timeout_ms);
  if (options.kind === "memory") {
    bytes.writeBigUInt64LE(options.hub, at.hub);
    return bytes;
  }
  bytes.writeUInt32LE(options.listenPort, at.listen_port);
  bytes.write(options.listenHost, at.listen_host, maxHostBytes, "latin1");
  createHash("sha256").update(options.namespace).digest().copy(bytes, at.name_space);
  return bytes;
}

function encodeBindings(bindings: readonly NativeBinding[]): Buffer {
  const { size, address, bytes } = sessionStructs.tb_binding;
  const encoded = Buffer.alloc(bindings.length * size);
  for (const [index, binding] of bindings.entries()) {
    encoded.writeBigUInt64LE(binding.address, index * size + address);
    encoded.writeBigUInt64LE(binding.bytes, index * size + bytes);
  }
  return encoded;
}

function decodeEvent(bytes: Buffer): NativeEvent | undefined {
  const at = sessionStructs.tb_event;
  const kind = bytes.readUInt32LE(at.kind);
  switch (kind) {
    case 0:
      return undefined;
    case 1:
      return decodeHandshake(bytes);
    case 2:
    case 3:
      return {
        kind: kind === 2 ? "prepared" : "round",
        transfer: bytes.readBigUInt64LE(at.transfer),
        round: bytes.readBigUInt64LE(at.round),
        bytesSent: bytes.readBigUInt64LE(at.bytes_sent),
        bytesReceived: bytes.readBigUInt64LE(at.bytes_received),
        bytesCopied: bytes.readBigUInt64LE(at.bytes_copied),
        nanoseconds: bytes.readBigUInt64LE(at.nanoseconds),
        stagingHighWater: bytes.readBigUInt64LE(at.staging_high_water),
        error: readError(bytes, at.error),
      };
    case 4:
      return { kind: "peerLost", error: errorOf(bytes) };
    case 5:
      return { kind: "fault", error: errorOf(bytes) };
    case 6:
      return { kind: "peerLeft", error: errorOf(bytes) };
    case 7:
      return { kind: "ended" };
    default:
      throw new TypeError(`a native event has the unknown kind ${kind}`);
  }
}

function decodeHandshake(bytes: Buffer): HandshakeEvent {
  const at = sessionStructs.tb_event;
  const hello = (index: number) =>
    Uint8Array.from(bytes.subarray(at.handshake_hello + index * helloBytes).subarray(0, helloBytes));
  return {
    kind: "handshake",
    connection: bytes.readBigUInt64LE(at.connection),
    role: bytes.readUInt32LE(at.handshake_role) === 0 ? 0 : 1,
    step: bytes.readUInt32LE(at.handshake_step) === 0 ? "prove" : "check",
    hellos: { connecting: hello(0), accepting: hello(1) },
    proof: Uint8Array.from(bytes.subarray(at.handshake_proof).subarray(0, proofBytes)),
  };
}

function errorOf(bytes: Buffer): TensorBusError {
  const error = readError(bytes, sessionStructs.tb_event.error);
  if (error === undefined) throw new TypeError("a native event of a failure has no error");
  return error;
}
