/**
 * The session that all transports share: everything but bytes. Native code moves the data and says what
 * happened through a pipe; this side keeps promises, secrets, addresses and what is registered.
 */
import { constants } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { type Observable, Subject } from "rxjs";
import { Deadline } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { type Member, sessionIdentity } from "../ffi/carriers.ts";
import type { HandshakeEvent, NativeBinding, NativeEvent, NativeSessionOptions } from "../ffi/session.ts";
import * as native from "../ffi/session.ts";
import type { Memory } from "../memory/memory.ts";
import type { Program } from "../plan/planner/program.ts";
import { bindProgram } from "./binding.ts";
import { EventPipe } from "./event-pipe.ts";
import { checkProof, type HandshakeRole, makeProof } from "./handshake.ts";
import { NativeTransfer } from "./native-transfer.ts";
import type { PeerDirectory } from "./peer-directory.ts";
import type {
  PlanLinks,
  PreparedTransfer,
  PrepareOptions,
  TensorBinding,
  TransportCapabilities,
  TransportEvent,
  TransportSession,
  WaitOptions,
} from "./transport.ts";

/** Events that are taken in one turn of the event loop. */
const eventsPerTurn = 64;
/** Between two looks at what has moved. */
const staleMs = 20;

interface NativeSessionSetup {
  readonly capabilities: TransportCapabilities;
  /** The name of the transport that carries buckets over the session's connections. */
  readonly stream: string;
  readonly options: NativeSessionOptions;
  /** Proves this side to its peers (the first) and peers to this side (any); empty if there is no handshake. */
  readonly secrets: readonly Uint8Array[];
  /** The source of peers' addresses; absent if there are none. */
  readonly directory?: PeerDirectory;
  /** Gives the session what its carriers need, before anything is registered. */
  readonly equip?: (session: bigint) => void;
  /** Gathers the ranks of a plan, and binds what was prepared to what they have in common. */
  readonly gather?: (session: bigint) => Gather;
  /** Called once, when native code has let go of the session. */
  readonly closed?: () => void;
}

/** The steps of a transport beyond preparing a transfer with each of its peers alone. */
export interface Gather {
  /** The ranks that begin the rounds of a plan in GPU memory together, ascending, this one among them; or none. */
  choose(links: PlanLinks, checksum: boolean, deadline: Deadline): Promise<readonly Member[]>;
  /** See `TransportSession.checkRanks`. */
  check(ranks: readonly number[], deadline: Deadline): Promise<void>;
  /** Called before it is prepared, if this rank joins; what it gives is handed to `attach`. */
  announce(joining: Int32Array, deadline: Deadline): Promise<number>;
  /** Called once the transfer is prepared; those who join ascend, and this rank is among them. */
  attach(transfer: bigint, joining: Int32Array, ticket: number, deadline: Deadline): Promise<void>;
  /** Takes back what it published. */
  withdraw(): Promise<void>;
}

export class NativeSession implements TransportSession {
  readonly rank: number;
  readonly capabilities: TransportCapabilities;
  readonly events$: Observable<TransportEvent>;
  readonly #handle: bigint;
  readonly #pipe: EventPipe;
  readonly #gather: Gather | undefined;
  readonly #setup: NativeSessionSetup;
  readonly #events = new Subject<TransportEvent>();
  /** What is registered, with its address: memory that was given up meanwhile may not say it any more. */
  readonly #memories = new Map<Memory, bigint>();
  readonly #transfers = new Map<bigint, NativeTransfer>();
  #closing: Promise<void> | undefined;
  /** Called when native code has come to rest. */
  #stopped: (() => void) | undefined;
  #closed = false;

  /** Opens the native session; it can be reached at once, but nobody knows yet where. */
  constructor(setup: NativeSessionSetup) {
    const { session, eventDescriptor } = native.openSession(setup.options);
    this.rank = setup.options.rank;
    this.capabilities = setup.capabilities;
    this.events$ = this.#events.asObservable();
    this.#setup = setup;
    this.#handle = session;
    this.#pipe = new EventPipe(
      eventDescriptor,
      () => this.#drain(),
      (error) => this.#lost(error),
    );
    try {
      setup.equip?.(session);
      this.#gather = setup.gather?.(session);
    } catch (error) {
      native.closeSession(session);
      this.#pipe.close();
      throw error;
    }
  }

  /** The identity of the session for carriers; it holds no secret. */
  get identity(): Uint8Array {
    return sessionIdentity(this.#handle);
  }

  /** The port that the session listens on. */
  get port(): number {
    return native.sessionPort(this.#handle);
  }

  register(memory: Memory): void {
    this.#checkOpen();
    if (this.#memories.has(memory)) throw new TypeError("this memory is registered already");
    this.#checkKind(memory);
    const { address } = memory;
    native.registerMemory(this.#handle, address, memory.bytes);
    memory.retain();
    this.#memories.set(memory, address);
  }

  unregister(memory: Memory): void {
    this.#checkOpen();
    const address = this.#memories.get(memory);
    if (address === undefined) {
      throw new TensorBusError("TB_REGION", "this memory is not registered", {
        details: { bytes: memory.bytes },
      });
    }
    native.unregisterMemory(this.#handle, address, memory.bytes);
    this.#memories.delete(memory);
    memory.release();
  }

  async prepare(
    program: Program,
    bindings: readonly TensorBinding[],
    options: PrepareOptions,
  ): Promise<PreparedTransfer> {
    this.#checkOpen();
    const deadline = new Deadline(options);
    if (options.checksum === true && !this.capabilities.checksum) {
      throw new TensorBusError(
        "TB_UNSUPPORTED",
        "this transport makes no checksums: leave the option checksum out",
      );
    }
    // A peer that left may listen elsewhere by now: what has happened must be known before it is looked up.
    this.#drain();
    const bind = () => bindProgram(program, bindings, { rank: this.rank, memories: this.#memories });
    bind(); // what is wrong with it is said before anyone is waited for
    const onDevice = bindings.some(({ source, target }) => (source ?? target)?.memory.kind === "cuda");
    for (;;) {
      const chosen = onDevice ? await this.#choose(program, options, deadline) : [];
      const members = withLinks(chosen, options.linked ?? [], this.rank);
      await this.#introduce(program, members, deadline);
      try {
        // Memory may have been unregistered meanwhile, and its address taken by other memory.
        return await this.#prepareOnce(program, bind(), { ...options, members }, deadline);
      } catch (error) {
        if (isStale(error) && deadline.remainingMs > staleMs) await sleep(staleMs);
        else if (!(await this.#hasMoved(error, deadline))) throw error;
      }
    }
  }

  async checkRanks(ranks: readonly number[], options: WaitOptions = {}): Promise<void> {
    this.#checkOpen();
    await this.#gather?.check(ranks, new Deadline(options));
  }

  close(): Promise<void> {
    this.#closing ??= this.#close(closedError(), this.#stop());
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Tells native code where the peers of a program are. */
  async #introduce(program: Program, members: readonly Member[], deadline: Deadline): Promise<void> {
    const { directory } = this.#setup;
    if (directory === undefined) return;
    // The lowest of those who join is connected with all others.
    const leader = members.find(({ joins }) => joins)?.rank;
    const more = members.filter(
      ({ rank, linked = false, apart = false }) =>
        linked || (!apart && (rank === leader || leader === this.rank)),
    );
    const peers = [...new Set([...program.peers, ...more.map(({ rank }) => rank)])].filter(
      (rank) => rank !== this.rank,
    );
    await directory.lookUp(peers, deadline, (rank, { host, port }) => {
      this.#checkOpen();
      native.setPeer(this.#handle, rank, host, port);
    });
  }

  async #prepareOnce(
    program: Program,
    bindings: readonly NativeBinding[],
    { key, checksum = false, members }: PrepareOptions & { readonly members: readonly Member[] },
    deadline: Deadline,
  ): Promise<PreparedTransfer> {
    const joining = joiningOf(members, this.rank);
    const ticket = joining === undefined ? 0 : await this.#gather!.announce(joining, deadline);
    this.#checkOpen();
    const handle = native.prepareTransfer(this.#handle, {
      key,
      program: program.bytes,
      bindings,
      checksum,
      timeoutNs: deadline.remainingNs,
      members,
    });
    const transfer = new NativeTransfer({
      session: this.#handle,
      transfer: handle,
      key,
      rank: this.rank,
      peers: program.peers.filter((rank) => rank !== this.rank),
      ranks: program.peers.length + members.length,
      stream: this.#setup.stream,
      pipe: this.#pipe,
      forget: () => this.#transfers.delete(handle),
    });
    this.#transfers.set(handle, transfer);
    await transfer.prepared(deadline);
    if (joining === undefined) return transfer;
    try {
      await this.#gather!.attach(handle, joining, ticket, deadline);
    } catch (error) {
      await transfer.release();
      throw error;
    }
    return transfer;
  }

  /** The ranks that begin rounds together; none if the transport gathers no ranks. */
  async #choose(
    { peers }: Program,
    { links, checksum = false }: PrepareOptions,
    deadline: Deadline,
  ): Promise<readonly Member[]> {
    if (this.#gather === undefined || peers.length === 0) return [];
    const own = {
      count: peers.length,
      srcRank: new Uint32Array(peers.length).fill(this.rank),
      dstRank: Uint32Array.from(peers),
    };
    return this.#gather.choose(links?.() ?? own, checksum, deadline);
  }

  /** True if a peer was not where the store once said, and the store says something else by now. */
  async #hasMoved(error: unknown, deadline: Deadline): Promise<boolean> {
    const { directory } = this.#setup;
    if (!(error instanceof TensorBusError) || directory === undefined) return false;
    const { rank } = error.details;
    if ((error.code !== "TB_CONNECT" && error.code !== "TB_PEER_LOST") || typeof rank !== "number")
      return false;
    if (rank === this.rank || deadline.signal?.aborted || deadline.remainingMs === 0) return false;
    const moved = await directory.moved(rank, deadline);
    directory.forget(rank);
    return moved;
  }

  /** Takes the events that are there, some in a turn: strangers can cause them as fast as they are taken. */
  #drain(): void {
    for (let taken = 0; !this.#closed; taken += 1) {
      if (taken === eventsPerTurn) {
        setImmediate(() => this.#drain());
        return;
      }
      const event = native.nextEvent(this.#handle);
      if (event === undefined) return;
      this.#dispatch(event);
    }
  }

  #dispatch(event: NativeEvent): void {
    switch (event.kind) {
      case "handshake":
        this.#answer(event);
        break;
      case "prepared":
      case "round":
        this.#transfers.get(event.transfer)?.settle(event);
        break;
      case "peerLost":
      case "peerLeft": {
        const rank = Number(event.error.details["rank"]);
        this.#setup.directory?.forget(rank);
        this.#events.next({ kind: event.kind, rank, error: event.error });
        break;
      }
      case "fault":
        this.#events.next({ kind: "fault", error: event.error });
        break;
      case "ended":
        this.#stopped?.();
        break;
    }
  }

  #answer({ connection, role, step, hellos, proof }: HandshakeEvent): void {
    if (this.#closing !== undefined) return;
    const { secrets } = this.#setup;
    const answer =
      step === "prove"
        ? { proof: makeProof(secrets[0]!, role, hellos) }
        : { accept: checkProof(secrets, (1 - role) as HandshakeRole, hellos, proof) };
    try {
      native.answerHandshake(this.#handle, connection, answer);
    } catch (error) {
      // The connection may have ended while its question waited to be read; that is told by an event of its own.
      if (!(error instanceof TensorBusError) || error.code !== "TB_CLOSED") throw error;
    }
  }

  /** The pipe broke: nothing that is awaited could ever be settled by an event. */
  #lost(cause: Error): void {
    const error = new TensorBusError("TB_SYSTEM", "the pipe of native events broke", { cause });
    this.#closing ??= this.#close(error, Promise.resolve());
  }

  /** Settles when nothing runs any more, or has had its time to end. The event loop goes on meanwhile. */
  #stop(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, this.#setup.options.quiesceMs);
      this.#stopped = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#pipe.hold();
      native.stopSession(this.#handle);
    });
  }

  async #close(reason: TensorBusError, quiet: Promise<void>): Promise<void> {
    for (const transfer of this.#transfers.values()) transfer.refuse(reason);
    await quiet;
    this.#closed = true;
    let failure: unknown;
    try {
      native.closeSession(this.#handle);
    } catch (error) {
      failure = error;
    }
    this.#pipe.close();
    for (const transfer of [...this.#transfers.values()]) transfer.end(failure ?? reason);
    this.#transfers.clear();
    this.#events.complete();
    // Memory that something may still touch stays mapped for good.
    if (failure === undefined) for (const memory of this.#memories.keys()) memory.release();
    this.#memories.clear();
    this.#setup.closed?.();
    await this.#setup.directory?.withdraw();
    await this.#gather?.withdraw();
    if (failure !== undefined) throw failure;
  }

  #checkOpen(): void {
    if (this.#closing !== undefined) throw closedError();
  }

  #checkKind(memory: Memory): void {
    if (this.capabilities.memory.includes(memory.kind)) return;
    throw new TensorBusError("TB_UNSUPPORTED", `this transport cannot address ${memory.kind} memory`, {
      details: { kind: memory.kind, supported: this.capabilities.memory },
    });
  }
}

/** Those who begin rounds together, and those who are linked with this rank, by ascending rank. */
function withLinks(members: readonly Member[], linked: readonly number[], own: number): readonly Member[] {
  if (linked.length === 0) return members;
  const all = new Map(members.map((member) => [member.rank, member]));
  for (const rank of [own, ...linked]) {
    const known = all.get(rank) ?? { rank, joins: false, peer: false, apart: rank !== own };
    all.set(rank, { ...known, linked: rank !== own });
  }
  return [...all.values()].sort((a, b) => a.rank - b.rank);
}

/** The ranks of those that join; `undefined` if this one does not. */
function joiningOf(members: readonly Member[], own: number): Int32Array | undefined {
  const joining = members.filter(({ joins }) => joins).map(({ rank }) => rank);
  return joining.includes(own) ? Int32Array.from(joining) : undefined;
}

/** True if one of two ranks looked for the other where it is no more: what is known of it is asked for anew. */
function isStale(error: unknown): boolean {
  return error instanceof TensorBusError && error.details["errno"] === constants.errno.ESTALE;
}

function closedError(): TensorBusError {
  return new TensorBusError("TB_CLOSED", "the session was closed");
}
