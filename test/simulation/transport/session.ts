/**
 * A transport within a virtual network. It says and does what the native engine does over real ones (`docs/wire-protocol.md`),
 * for copies alone: what it is for is the order of things, not their speed.
 */
import { type Observable, Subject } from "rxjs";
import { Deadline } from "../../../src/deadline.ts";
import { TensorBusError } from "../../../src/errors.ts";
import { forGood } from "../../../src/ffi/error.ts";
import type { Memory } from "../../../src/memory/memory.ts";
import type { Program } from "../../../src/plan/planner/program.ts";
import { checkMembership } from "../../../src/transport/open-options.ts";
import type {
  PreparedTransfer,
  PrepareOptions,
  TensorBinding,
  Transport,
  TransportCapabilities,
  TransportEvent,
  TransportSession,
} from "../../../src/transport/transport.ts";
import type { Link, Network, Station } from "../world/network.ts";
import type { Process } from "../world/scheduler.ts";
import type { Frame } from "./frames.ts";
import { VirtualTransfer } from "./transfer.ts";

const capabilities: TransportCapabilities = {
  memory: ["host"],
  crossHost: true,
  checksum: false,
};

/** The transport of one process; its sessions meet those of all others in the network. */
export function virtualTransport(network: Network<Frame>, process?: Process): Transport {
  return {
    name: "virtual",
    capabilities,
    async open(options) {
      const { rank } = checkMembership(options);
      return new VirtualSession(network, rank, process);
    },
  };
}

type PrepareFrame = Extract<Frame, { kind: "prepare" }>;

export class VirtualSession implements TransportSession, Station<Frame> {
  readonly rank: number;
  readonly capabilities = capabilities;
  readonly process: Process | undefined;
  readonly network: Network<Frame>;
  readonly events$: Observable<TransportEvent>;
  readonly memories = new Set<Memory>();
  /** What it would move with has failed for good. */
  isDead = false;
  /** By this side's number. */
  readonly #transfers = new Map<number, VirtualTransfer>();
  readonly #events = new Subject<TransportEvent>();
  /** What peers have prepared and this rank has not yet, by connection. */
  readonly #early = new Map<Link<Frame>, PrepareFrame[]>();
  #count = 0;
  #closing: Promise<void> | undefined;

  constructor(network: Network<Frame>, rank: number, process: Process | undefined) {
    this.network = network;
    this.rank = rank;
    this.process = process;
    this.events$ = this.#events.asObservable();
    network.open(this);
  }

  register(memory: Memory): void {
    this.#checkOpen();
    if (this.memories.has(memory)) throw new TypeError("this memory is registered already");
    if (memory.kind !== "host") {
      throw new TensorBusError("TB_UNSUPPORTED", `this transport cannot address ${memory.kind} memory`);
    }
    memory.retain();
    this.memories.add(memory);
  }

  unregister(memory: Memory): void {
    this.#checkOpen();
    if (!this.memories.has(memory)) throw new TensorBusError("TB_REGION", "this memory is not registered");
    if ([...this.#transfers.values()].some((transfer) => transfer.uses(memory))) {
      throw new TensorBusError("TB_BUSY", "something prepared uses this memory");
    }
    this.memories.delete(memory);
    memory.release();
  }

  async prepare(
    program: Program,
    bindings: readonly TensorBinding[],
    options: PrepareOptions,
  ): Promise<PreparedTransfer> {
    this.#checkOpen();
    const deadline = new Deadline(options);
    if (options.checksum === true) {
      throw new TensorBusError(
        "TB_UNSUPPORTED",
        "this transport makes no checksums: leave the option checksum out",
      );
    }
    if (this.isDead) throw this.deadError();
    if ([...this.#transfers.values()].some(({ key }) => key === options.key)) {
      throw new TensorBusError("TB_BUSY", `${options.key} is prepared already`);
    }
    const number = ++this.#count;
    const { key, linked = [] } = options;
    const transfer = new VirtualTransfer({ session: this, number, key, program, bindings, linked });
    this.#transfers.set(number, transfer);
    try {
      await transfer.prepare(deadline);
    } catch (error) {
      this.#transfers.delete(number);
      throw error;
    }
    return transfer;
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  deadError(): TensorBusError {
    const { rank } = this;
    const details = { rank, errno: forGood };
    return new TensorBusError("TB_CUDA", `the GPU of rank ${rank} has failed`, { details });
  }

  forget(transfer: VirtualTransfer): void {
    this.#transfers.delete(transfer.number);
  }

  /** What a peer has prepared under a key before this rank. */
  earlyFrom(link: Link<Frame>, key: string): PrepareFrame | undefined {
    const list = this.#early.get(link);
    const index = list?.findIndex((frame) => frame.key === key) ?? -1;
    return index < 0 ? undefined : list!.splice(index, 1)[0];
  }

  onFrame(link: Link<Frame>, frame: Frame): void {
    if (this.isClosed) return;
    const { rank } = link.peerOf(this);
    switch (frame.kind) {
      case "prepare": {
        const waiting = [...this.#transfers.values()].find(
          (transfer) => transfer.key === frame.key && transfer.awaits(rank),
        );
        if (waiting !== undefined) waiting.onPrepare(rank, link, frame);
        else this.#early.set(link, [...(this.#early.get(link) ?? []), frame]);
        return;
      }
      case "release": {
        const early = this.#early.get(link)?.filter(({ from }) => from !== frame.from);
        if (early !== undefined) this.#early.set(link, early);
        for (const transfer of [...this.#transfers.values()]) transfer.onRelease(rank, frame);
        return;
      }
      default:
        this.#transfers.get(frame.to)?.onFrame(rank, frame);
    }
  }

  onEnd(link: Link<Frame>, orderly: boolean): void {
    if (this.isClosed) return;
    this.#early.delete(link);
    const { rank } = link.peerOf(this);
    const what = orderly ? `rank ${rank} has closed its session` : `the connection with rank ${rank} is lost`;
    const error = new TensorBusError("TB_PEER_LOST", what, { details: { rank } });
    for (const transfer of [...this.#transfers.values()]) transfer.onLost(rank, link, error);
    this.#events.next({ kind: orderly ? "peerLeft" : "peerLost", rank, error });
  }

  async #close(): Promise<void> {
    const reason = new TensorBusError("TB_CLOSED", "the session was closed");
    for (const transfer of [...this.#transfers.values()]) transfer.end(reason);
    this.network.close(this);
    this.#transfers.clear();
    this.#early.clear();
    for (const memory of this.memories) memory.release();
    this.memories.clear();
    this.#events.complete();
  }

  #checkOpen(): void {
    if (this.isClosed) throw new TensorBusError("TB_CLOSED", "the session was closed");
  }
}
