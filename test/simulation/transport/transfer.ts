/** What is prepared with the virtual transport: it meets its peers, and runs one round at a time. */
import { Deadline, waitUntil } from "../../../src/deadline.ts";
import { TensorBusError } from "../../../src/errors.ts";
import type { Memory } from "../../../src/memory/memory.ts";
import type { Program } from "../../../src/plan/planner/program.ts";
import { bindProgram } from "../../../src/transport/binding.ts";
import type {
  PostOptions,
  PreparedTransfer,
  RoundProgress,
  RoundReport,
  TensorBinding,
} from "../../../src/transport/transport.ts";
import type { Link } from "../world/network.ts";
import {
  type Awaited,
  awaitedIn,
  type Channel,
  channelOf,
  describeChannels,
  type Exchange,
  isUnfinished,
  lateError,
  newChannel,
  sumUp,
} from "./exchange.ts";
import { asFailure, errorOf, type Failure, type Frame } from "./frames.ts";
import { Payloads } from "./payload.ts";
import { readProgram } from "./program.ts";
import type { VirtualSession } from "./session.ts";

/** Between two looks whether a peer can be reached. */
const lookAgainMs = 10;

interface Setup {
  readonly session: VirtualSession;
  readonly number: number;
  readonly key: string;
  readonly program: Program;
  readonly bindings: readonly TensorBinding[];
  readonly linked: readonly number[];
}

interface Round {
  readonly number: number;
  readonly began: number;
  readonly resolve: (report: RoundReport) => void;
  readonly reject: (error: unknown) => void;
}

export class VirtualTransfer implements PreparedTransfer {
  readonly key: string;
  readonly number: number;
  readonly stagingBytes: bigint;
  readonly transports: ReadonlyMap<number, string>;
  readonly #setup: Setup;
  readonly #payloads: Payloads;
  readonly #local: readonly Channel[];
  readonly #exchanges: readonly Exchange[];
  #state: "preparing" | "ready" | "ended" = "preparing";
  #why: unknown;
  #failPrepare: (error: TensorBusError) => void = () => {};
  #agreed: () => void = () => {};
  #round: Round | undefined;
  #running: Promise<unknown> = Promise.resolve();
  #lastRound = 0;
  /** Rounds that are known to have failed, this one or later ones, with why. */
  readonly #aborted = new Map<number, Failure>();
  #bytesDone = 0n;
  #waited: readonly Awaited[] = [];

  constructor(setup: Setup) {
    const { session, number, key, program, bindings } = setup;
    const memories = new Map([...session.memories].map((memory) => [memory, memory.address]));
    bindProgram(program, bindings, { rank: session.rank, memories });
    this.#setup = setup;
    this.#payloads = new Payloads(program, bindings);
    this.key = key;
    this.number = number;
    this.stagingBytes = program.stagingBytes;
    const channels = readProgram(program).map(newChannel);
    this.#local = channels.filter(({ direction }) => direction === "local");
    const peers = [...new Set([...program.peers, ...setup.linked])].filter((rank) => rank !== session.rank);
    this.#exchanges = peers.map((rank) => ({
      rank,
      channels: channels.filter(({ peer, direction }) => peer === rank && direction !== "local"),
      isLinked: setup.linked.includes(rank),
      link: undefined,
      remote: undefined,
      isAgreed: false,
      isGone: false,
      here: 0,
      isAwaited: false,
    }));
    this.transports = new Map(this.#exchanges.map(({ rank }) => [rank, "virtual"]));
  }

  uses(memory: Memory): boolean {
    return this.#setup.bindings.some(
      ({ source, target }) => source?.memory === memory || target?.memory === memory,
    );
  }

  // ---- preparing -----------------------------------------------------------------------------------------

  async prepare(deadline: Deadline): Promise<void> {
    const { session } = this.#setup;
    try {
      await waitUntil<void>(`preparing ${this.key}`, deadline, (resolve, reject) => {
        this.#failPrepare = reject;
        this.#agreed = resolve;
        let timer: ReturnType<typeof setTimeout> | undefined;
        const meet = () => {
          timer = undefined;
          for (const exchange of this.#exchanges) if (exchange.link === undefined) this.#meet(exchange);
          if (this.#exchanges.some(({ link }) => link === undefined)) timer = setTimeout(meet, lookAgainMs);
          this.#checkAgreed();
        };
        meet();
        return () => clearTimeout(timer);
      });
    } catch (error) {
      this.#leave(asFailure(error, session.rank), isRefusal(error));
      const { code, message, cause } = error as TensorBusError;
      const missing = this.#exchanges.find(({ remote, isAgreed }) => remote === undefined || !isAgreed)?.rank;
      const rank = code === "TB_TIMEOUT" ? (missing ?? session.rank) : session.rank;
      const details = { rank, ...(error as TensorBusError).details };
      throw new TensorBusError(code, message, { details, cause });
    }
    this.#state = "ready";
  }

  /** True while a peer's prepare of this key is what it waits for. */
  awaits(rank: number): boolean {
    const exchange = this.#exchanges.find((each) => each.rank === rank);
    return this.#state === "preparing" && exchange !== undefined && exchange.remote === undefined;
  }

  onPrepare(rank: number, link: Link<Frame>, frame: Extract<Frame, { kind: "prepare" }>): void {
    const exchange = this.#exchanges.find((each) => each.rank === rank)!;
    if (exchange.link === undefined) this.#meet(exchange, link);
    if (exchange.link !== link) return;
    exchange.remote = frame.from;
    const { program } = this.#setup;
    if (frame.digest !== program.digest || frame.channels !== describeChannels(exchange)) {
      this.#failPrepare(
        new TensorBusError("TB_PLAN_MISMATCH", `ranks hold different plans of ${this.key}`, {
          details: { rank },
        }),
      );
      return;
    }
    link.send(this.#setup.session, { kind: "match", from: this.number, to: frame.from });
    this.#checkAgreed();
  }

  onRelease(rank: number, { from, forGood, why }: Extract<Frame, { kind: "release" }>): void {
    const exchange = this.#exchanges.find((each) => each.rank === rank && each.remote === from);
    if (exchange === undefined || exchange.isGone) return;
    if (this.#state === "preparing" && !exchange.isAgreed && !forGood) {
      exchange.remote = undefined;
      return;
    }
    exchange.isGone = true;
    if (this.#state === "preparing") this.#failPrepare(errorOf(why));
    else if (isUnfinished(exchange)) this.#fail(errorOf(why));
  }

  onLost(rank: number, link: Link<Frame>, error: TensorBusError): void {
    const exchange = this.#exchanges.find((each) => each.rank === rank && each.link === link);
    if (exchange === undefined || exchange.isGone) return;
    if (this.#state === "preparing" && exchange.remote === undefined) {
      // Whoever comes in its place may still prepare.
      exchange.link = undefined;
      exchange.isAgreed = false;
      this.#failPrepare(error);
      return;
    }
    exchange.isGone = true;
    if (this.#state === "preparing") this.#failPrepare(error);
    else if (this.#round !== undefined && isUnfinished(exchange)) this.#fail(error);
  }

  #meet(exchange: Exchange, known?: Link<Frame>): void {
    const { session, program } = this.#setup;
    const link = known ?? session.network.connect(session, exchange.rank);
    if (link === undefined) return;
    exchange.link = link;
    link.send(session, {
      kind: "prepare",
      from: this.number,
      key: this.key,
      digest: program.digest,
      checksum: false,
      channels: describeChannels(exchange),
    });
    const early = session.earlyFrom(link, this.key);
    if (early !== undefined) this.onPrepare(exchange.rank, link, early);
  }

  #checkAgreed(): void {
    const isWhole = this.#exchanges.every(({ remote, isAgreed }) => remote !== undefined && isAgreed);
    if (this.#state === "preparing" && isWhole) this.#agreed();
  }

  // ---- rounds --------------------------------------------------------------------------------------------

  async post(options: PostOptions = {}): Promise<RoundReport> {
    this.#checkUsable();
    const deadline = new Deadline(options);
    const round = options.round ?? this.#lastRound + 1;
    if (!Number.isSafeInteger(round) || round <= this.#lastRound) {
      throw new TypeError(`round ${round} does not follow round ${this.#lastRound}`);
    }
    if (this.#round !== undefined) {
      throw new TensorBusError("TB_BUSY", `a round of ${this.key} is still under way`, {
        details: { key: this.key },
      });
    }
    this.#lastRound = round;
    const { signal } = deadline;
    const { rank } = this.#setup.session;
    const cancel = () =>
      this.#fail(
        new TensorBusError("TB_CANCELLED", `rank ${rank} cancelled round ${round}`, {
          details: { rank },
          cause: signal?.reason,
        }),
      );
    const ended = new Promise<RoundReport>((resolve, reject) => {
      this.#round = { number: round, began: performance.now(), resolve, reject };
    });
    const late = setTimeout(() => {
      this.#fail(lateError(rank, round, this.awaited()));
    }, deadline.remainingMs);
    signal?.addEventListener("abort", cancel, { once: true });
    this.#running = ended.catch(() => {});
    try {
      // A round that is cancelled before it began is begun all the same, so that its end is told to all others.
      if (signal?.aborted) cancel();
      else this.#begin(round);
      return await ended;
    } finally {
      clearTimeout(late);
      signal?.removeEventListener("abort", cancel);
    }
  }

  progress(): RoundProgress {
    this.#checkUsable();
    const all = this.#channels;
    const bytesTotal = all.reduce((sum, { bytes }) => sum + bytes, 0n);
    return { round: this.#lastRound, bytesDone: this.#bytesDone, bytesTotal };
  }

  /** Whom the round under way waits for, or the last one waited for when it failed. */
  awaited(): readonly Awaited[] {
    return this.#round === undefined ? this.#waited : awaitedIn(this.#exchanges, this.#round.number);
  }

  async release(): Promise<void> {
    if (this.#state === "ended") return;
    if (this.#round !== undefined)
      throw new TensorBusError("TB_BUSY", `a round of ${this.key} is still under way`);
    const { rank } = this.#setup.session;
    this.#leave({ code: "TB_INVALIDATED", rank, message: `rank ${rank} released ${this.key}` }, false);
    this.end(new TensorBusError("TB_CLOSED", `${this.key} was released`));
    this.#setup.session.forget(this);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { rank } = this.#setup.session;
    if (this.#round !== undefined) {
      this.#fail(new TensorBusError("TB_CANCELLED", `rank ${rank} cancelled it`, { details: { rank } }));
      await this.#running;
    }
    await this.release();
  }

  /** The session ends, or this is released: nothing touches memory any more. */
  end(reason: TensorBusError): void {
    if (this.#state === "preparing") this.#failPrepare(reason);
    this.#state = "ended";
    this.#why = reason;
    const round = this.#round;
    this.#round = undefined;
    round?.reject(reason);
  }

  onFrame(rank: number, frame: Exclude<Frame, { kind: "prepare" | "release" }>): void {
    const exchange = this.#exchanges.find((each) => each.rank === rank);
    if (exchange === undefined || this.#state === "ended") return;
    switch (frame.kind) {
      case "match":
        if (frame.from !== exchange.remote && exchange.remote !== undefined) return;
        exchange.remote = frame.from;
        exchange.isAgreed = true;
        this.#checkAgreed();
        return;
      case "here":
        this.#onHere(exchange, frame.round);
        return;
      case "grant":
        this.#onGrant(exchange, frame.round, frame.channel);
        return;
      case "data":
        this.#onData(exchange, frame);
        return;
      case "taken":
        if (this.#round?.number === frame.round) this.#finish(channelOf(exchange, frame.channel));
        return;
      case "abort":
        this.#spread(frame.round, frame.why);
    }
  }

  get #channels(): Channel[] {
    return [...this.#local, ...this.#exchanges.flatMap(({ channels }) => channels)];
  }

  #begin(round: number): void {
    this.#bytesDone = 0n;
    for (const channel of this.#channels) {
      channel.done = 0;
      channel.isFinished = false;
    }
    for (const exchange of this.#exchanges) exchange.isAwaited = exchange.isLinked && exchange.here < round;
    const aborted = this.#aborted.get(round);
    if (aborted !== undefined) {
      const { code, rank } = aborted;
      const message = `round ${round} had failed on rank ${rank} before it began here`;
      this.#fail(new TensorBusError(code, message, { details: { rank, hadFailed: true } }));
      return;
    }
    const gone = this.#exchanges.find(({ isGone }) => isGone);
    if (gone !== undefined) {
      const { rank } = gone;
      const message = `rank ${rank} went away after it was prepared`;
      this.#fail(new TensorBusError("TB_PEER_LOST", message, { details: { rank } }));
      return;
    }
    for (const exchange of this.#exchanges) {
      this.#say(exchange, { kind: "here", to: exchange.remote!, round });
    }
    if (this.#setup.session.isDead) {
      this.#fail(this.#setup.session.deadError());
      return;
    }
    for (const exchange of this.#exchanges) {
      for (const channel of exchange.channels) {
        if (channel.direction === "receive") this.#grant(exchange, channel, round);
        // A target that began before this rank has granted already.
        else if (channel.granted === round) this.#send(exchange, channel, round);
      }
    }
    setTimeout(() => this.#moveLocally(round), 0);
  }

  #grant(exchange: Exchange, channel: Channel, round: number): void {
    channel.granted = round;
    this.#say(exchange, { kind: "grant", to: exchange.remote!, round, channel: channel.name });
    if (channel.buckets.length === 0) this.#take(exchange, channel, round);
  }

  #onGrant(exchange: Exchange, round: number, name: string): void {
    const channel = channelOf(exchange, name);
    const running = this.#round;
    if (round <= channel.granted || (running === undefined && round <= this.#lastRound)) return;
    if (running !== undefined && round < running.number) return;
    channel.granted = round;
    if (running === undefined) return;
    if (round === running.number) {
      this.#send(exchange, channel, round);
      return;
    }
    if (!channel.isFinished) this.#wentOn(exchange, round);
  }

  #onHere(exchange: Exchange, round: number): void {
    exchange.here = Math.max(exchange.here, round);
    const running = this.#round;
    if (running === undefined || round < running.number) return;
    if (round === running.number) {
      exchange.isAwaited = false;
      this.#checkDone();
    } else if (isUnfinished(exchange)) this.#wentOn(exchange, round);
  }

  /** A peer that is ahead never began this round, unless it has no more to do with it. */
  #wentOn({ rank }: Exchange, round: number): void {
    const message = `rank ${rank} went on to round ${round}`;
    this.#fail(new TensorBusError("TB_CANCELLED", message, { details: { rank } }));
  }

  #send(exchange: Exchange, channel: Channel, round: number): void {
    channel.buckets.forEach((chunks, bucket) => {
      const payload = chunks.map((chunk) => this.#payloads.pack(chunk));
      this.#say(exchange, {
        kind: "data",
        to: exchange.remote!,
        round,
        channel: channel.name,
        bucket,
        payload,
      });
    });
    this.#bytesDone += channel.bytes;
  }

  #onData(
    exchange: Exchange,
    { round, channel: name, bucket, payload }: Extract<Frame, { kind: "data" }>,
  ): void {
    if (this.#round?.number !== round) return;
    const channel = channelOf(exchange, name);
    for (const [index, chunk] of channel.buckets[bucket]!.entries())
      this.#payloads.unpack(chunk, payload[index]!);
    channel.done += 1;
    if (channel.done === channel.buckets.length) this.#take(exchange, channel, round);
  }

  #take(exchange: Exchange, channel: Channel, round: number): void {
    this.#bytesDone += channel.bytes;
    this.#say(exchange, { kind: "taken", to: exchange.remote!, round, channel: channel.name });
    this.#finish(channel);
  }

  #moveLocally(round: number): void {
    if (this.#round?.number !== round) return;
    for (const channel of this.#local) {
      for (const chunk of channel.buckets.flat()) this.#payloads.copy(chunk);
      this.#bytesDone += channel.bytes;
      channel.isFinished = true;
    }
    this.#checkDone();
  }

  #finish(channel: Channel): void {
    channel.isFinished = true;
    this.#checkDone();
  }

  #checkDone(): void {
    const round = this.#round;
    if (round === undefined) return;
    if (this.#exchanges.some(isUnfinished) || this.#local.some(({ isFinished }) => !isFinished)) return;
    this.#round = undefined;
    const seconds = (performance.now() - round.began) / 1000;
    round.resolve({ round: round.number, ...sumUp(this.#channels), seconds, stagingHighWater: 0n });
  }

  #fail(error: TensorBusError): void {
    const round = this.#round;
    if (round === undefined) return;
    this.#waited = this.awaited();
    this.#round = undefined;
    this.#tellAbort(round.number, asFailure(error, this.#setup.session.rank));
    round.reject(error);
  }

  /** Goes on to all peers once for each round, also from a rank that is done with it or has not begun it. */
  #spread(round: number, why: Failure): void {
    if (this.#aborted.has(round)) return;
    if (this.#round?.number === round) this.#fail(errorOf(why));
    else this.#tellAbort(round, why);
  }

  #tellAbort(round: number, why: Failure): void {
    if (this.#aborted.has(round)) return;
    this.#aborted.set(round, why);
    for (const exchange of this.#exchanges) {
      if (exchange.remote !== undefined)
        this.#say(exchange, { kind: "abort", to: exchange.remote, round, why });
    }
  }

  #say(exchange: Exchange, frame: Frame): void {
    if (!exchange.isGone) exchange.link?.send(this.#setup.session, frame);
  }

  /** Peers that were told of it are told that it is no more. */
  #leave(why: Failure, forGood: boolean): void {
    for (const exchange of this.#exchanges)
      this.#say(exchange, { kind: "release", from: this.number, forGood, why });
  }

  #checkUsable(): void {
    if (this.#state === "ended") {
      throw new TensorBusError("TB_CLOSED", `${this.key} has ended`, { cause: this.#why });
    }
  }
}

/** No other attempt would do. */
function isRefusal(error: unknown): boolean {
  return error instanceof TensorBusError && error.code === "TB_PLAN_MISMATCH";
}
