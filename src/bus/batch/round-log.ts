/**
 * The log of one registration of a batch: the rounds that failed, and its end, as its ranks have told each other. Entries
 * stand under numbered keys, each made by compare-and-set from absent and never changed, so that all ranks read the same
 * ones in the same order, and one parked wait for the next number tells of everything.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import * as z from "zod";
import { Deadline, waitUntil } from "../../deadline.ts";
import { type ErrorCode, isErrorCode, TensorBusError } from "../../errors.ts";
import type { Store } from "../../store/store.ts";
import { pack, u64 } from "../queue/commands.ts";
import { decode } from "../queue/decode.ts";

const nonce = z.instanceof(Uint8Array);
const entrySchema = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("failed"),
    nonce,
    /** The side that sends. */
    from: z.string(),
    round: z.int().min(1),
    /** The rank that it began at, and what it was. */
    rank: z.int(),
    code: z.string(),
    /** The version that took the place of an older one. */
    expected: u64.optional(),
  }),
  z.strictObject({
    kind: z.literal("ended"),
    nonce,
    rank: z.int(),
    code: z.string(),
    message: z.string(),
    details: z.record(z.string(), z.unknown()),
    /** Whoever still waits for this registration moves on to the next. */
    retry: z.boolean(),
    /** By the side that sends, the last round that may still be joined: that rank has its part of it. None of a side that is not there. */
    through: z.record(z.string(), z.int().min(0)),
    /** When it was said: `Date.now()`. */
    at: z.number(),
  }),
]);
type Entry = z.infer<typeof entrySchema>;
export type FailedRound = Extract<Entry, { kind: "failed" }>;
export type BatchEnd = Extract<Entry, { kind: "ended" }>;
type Said<E extends Entry> = Omit<E, "nonce">;

interface RoundLogOptions {
  readonly store: Store;
  /** What its keys begin with. */
  readonly prefix: string;
  /** What could not be watched: a store that was lost. */
  readonly onFault: (error: unknown) => void;
}

/** The longest wait of a store; it begins anew then. */
const watchMs = 2 ** 31 - 1;
/** How long one try to append waits for the store, and the pause before the next. */
const tryMs = 2000;
const pauseMs = 50;

export class RoundLog {
  readonly #options: RoundLogOptions;
  readonly #closed = new AbortController();
  readonly #listeners = new Set<(entry: FailedRound | BatchEnd) => void>();
  /** The last failed round of each direction, and how many failed. */
  readonly #failed = new Map<string, { readonly last: FailedRound; readonly count: number }>();
  #head = 0;
  /** All that it has ended by: each may leave fewer rounds than those before. */
  readonly #ends: BatchEnd[] = [];
  #appending: Promise<void> = Promise.resolve();
  #isWatched = false;

  constructor(options: RoundLogOptions) {
    this.#options = options;
  }

  /** How and why this registration has ended, by the first rank that said so; rounds may go on. */
  get end(): BatchEnd | undefined {
    return this.#ends[0];
  }

  /** True once a rank that has been in no round can neither join one nor find one under way. */
  get isOver(): boolean {
    const [end] = this.#ends;
    return end !== undefined && Object.keys(end.through).every((from) => this.last(from) === 0);
  }

  /** The last round that may be joined: all of them while nobody has ended it. */
  last(from: string): number {
    return Math.min(Number.POSITIVE_INFINITY, ...this.#ends.map(({ through }) => through[from] ?? 0));
  }

  /** How many entries of it are known. */
  get length(): number {
    return this.#head;
  }

  /** The number after the highest round that failed: 1 if none has. */
  next(from: string): number {
    return (this.#failed.get(from)?.last.round ?? 0) + 1;
  }

  /** The highest round that failed. */
  lastFailed(from: string): FailedRound | undefined {
    return this.#failed.get(from)?.last;
  }

  /** How many rounds failed. */
  failures(from: string): number {
    return this.#failed.get(from)?.count ?? 0;
  }

  /** Told of every entry, once, in order. Returns what ends that. */
  listen(listener: (entry: FailedRound | BatchEnd) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Resolves once all that this rank has to say stands in the log, or the store is lost. Whoever leaves a batch waits for it: the last
   * one to leave removes the log, and nobody may write into it after that.
   */
  said(deadline: Deadline): Promise<void> {
    return settled("what this rank has to say of earlier rounds", this.#appending, deadline);
  }

  /** Knows afterwards whatever stood there when it was called. What this rank appends comes first. */
  async sync(deadline: Deadline): Promise<void> {
    await this.said(deadline);
    await this.#readOn(deadline);
  }

  /** Resolves once it is known that the round has failed: by this entry or one of another rank. */
  appendFailed(failed: Omit<Said<FailedRound>, "kind">): Promise<void> {
    const entry = { kind: "failed", nonce: randomBytes(8), ...failed } as const;
    const { from, round } = failed;
    return this.#append(entry, () => this.next(from) > round || round > this.last(from));
  }

  /**
   * Resolves once the end stands in the log: this one, or one that leaves no more rounds. `isOrderly`: some rank has left, which has
   * written before what that means for others; it matters only if that rank could not.
   */
  appendEnd(end: Omit<Said<BatchEnd>, "kind" | "at">, isOrderly = false): Promise<void> {
    const entry = { kind: "ended", nonce: randomBytes(8), at: Date.now(), ...end } as const;
    // That a rank which has said its own is not there any more is no news.
    const isSaid = (said: BatchEnd) => isOrderly || said.rank === end.rank || covers(said, end);
    return this.#append(entry, () => this.#ends.some(isSaid));
  }

  /** Follows what others append, from here on until it is closed. A second call does nothing. */
  watch(): void {
    if (this.#isWatched || this.#closed.signal.aborted) return;
    this.#isWatched = true;
    this.#follow().catch((error) => {
      // A store that is lost ends the batch by itself.
      const isLost = error instanceof TensorBusError && ["TB_STORE_LOST", "TB_CLOSED"].includes(error.code);
      if (!isLost && !this.#closed.signal.aborted) this.#options.onFault(error);
    });
  }

  /** What is being appended still is, until the store has it or is lost. */
  close(): void {
    this.#closed.abort();
    this.#listeners.clear();
  }

  async #follow(): Promise<void> {
    const { store } = this.#options;
    const { signal } = this.#closed;
    while (!this.isOver) {
      const index = this.#head + 1;
      try {
        await store.wait([this.#key(index)], { timeoutMs: watchMs, signal });
      } catch (error) {
        if (error instanceof TensorBusError && error.code === "TB_TIMEOUT") continue;
        throw error;
      }
      await this.#readOn(new Deadline({ timeoutMs: watchMs, signal }));
      // It stood there and does not any more: the next registration has removed what was left of this one.
      if (this.#head < index && !signal.aborted) this.#apply(index, removed());
    }
  }

  async #readOn(deadline: Deadline): Promise<void> {
    const { store } = this.#options;
    for (;;) {
      const index = this.#head + 1;
      const bytes = await store.get(this.#key(index), deadline.rest);
      if (bytes === undefined) return;
      this.#apply(index, this.#parse(index, bytes));
    }
  }

  #append(entry: Entry, isMoot: () => boolean): Promise<void> {
    const appended = this.#appending.then(() => this.#write(entry, isMoot));
    // A store that is lost ends the batch; nobody is told by it any more.
    this.#appending = appended.catch(() => {});
    return this.#appending;
  }

  async #write(entry: Entry, isMoot: () => boolean): Promise<void> {
    const { store } = this.#options;
    const bytes = pack(entry);
    while (!isMoot()) {
      const index = this.#head + 1;
      try {
        const { stored } = await store.compareAndSet(this.#key(index), undefined, bytes, {
          timeoutMs: tryMs,
        });
        const standing = stored ?? bytes;
        // An earlier try of this entry may have come through although its answer did not.
        this.#apply(index, this.#parse(index, standing));
        if (bytes.equals(standing)) return;
      } catch (error) {
        if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
        // It goes on once the log is closed, too: a store that stalled may have taken another rank's entry first, and the try
        // that timed out is lost then. One that never answers again is lost by itself, which ends this.
        await sleep(pauseMs);
      }
    }
  }

  #apply(index: number, entry: Entry): void {
    // A read and a write that go on side by side may both have found it.
    if (index !== this.#head + 1) return;
    this.#head = index;
    if (entry.kind === "ended") this.#ends.push(entry);
    else {
      const known = this.#failed.get(entry.from);
      const last = known !== undefined && known.last.round > entry.round ? known.last : entry;
      this.#failed.set(entry.from, { last, count: (known?.count ?? 0) + 1 });
    }
    for (const listener of [...this.#listeners]) listener(entry);
  }

  #parse(index: number, bytes: Uint8Array): Entry {
    const parsed = decode(entrySchema, bytes);
    if (parsed.success) return parsed.data;
    throw new TensorBusError("TB_VERSION", `the record ${this.#key(index)} was written by another version`, {
      details: { key: this.#key(index) },
    });
  }

  #key(index: number): string {
    return `${this.#options.prefix}/${index}`;
  }
}

/** True for an end that leaves no round which the other one does not leave. */
function covers({ through }: BatchEnd, other: Pick<BatchEnd, "through">): boolean {
  return Object.entries(through).every(([from, round]) => round <= (other.through[from] ?? 0));
}

/** Waits for a promise that does not fail. */
export function settled(what: string, promise: Promise<unknown>, deadline: Deadline): Promise<void> {
  return waitUntil<void>(what, deadline, (resolve) => {
    promise.then(() => resolve());
    return () => {};
  });
}

function removed(): BatchEnd {
  const message = "the batch was registered anew without this rank";
  return {
    kind: "ended",
    nonce: new Uint8Array(0),
    rank: -1,
    at: Date.now(),
    code: "TB_BATCH_UNKNOWN",
    message,
    details: {},
    retry: true,
    through: {},
  };
}

/** The code that a record of another rank names. */
export function knownCode(code: string): ErrorCode {
  return isErrorCode(code) ? code : "TB_CANCELLED";
}

/** A failure as it is told to other ranks: a deadline that passed was one call's own, for all others that call gave up. */
export function elsewhere({ code }: TensorBusError): ErrorCode {
  return code === "TB_TIMEOUT" ? "TB_CANCELLED" : code;
}

/** The rank where an error began. */
export function originOf({ details }: TensorBusError, own: number): number {
  const { rank } = details;
  return typeof rank === "number" ? rank : own;
}

/** What those are told who wait for a rank that has called the other way. */
export function opposedError(rank: number): TensorBusError {
  const message = `rank ${rank} is in a round of the opposite direction, and a batch has one round at a time`;
  return new TensorBusError("TB_BUSY", message, { details: { rank } });
}

export function errorOfFailed({ round, rank, code, expected }: FailedRound): TensorBusError {
  if (code === "TB_BUSY") return opposedError(rank);
  if (code === "TB_STALE_VERSION") {
    const message = `rank ${rank} left round ${round} for the newer version ${expected}`;
    return new TensorBusError(code, message, { details: { rank, expected } });
  }
  const message = `round ${round} failed on rank ${rank}`;
  return new TensorBusError(knownCode(code), message, { details: { rank } });
}

/** Ranks of one job come to a registration within this; clocks of hosts differ by less. */
const recentMs = 10_000;

/** True for an end of a moment ago, by the clocks of two hosts. */
export function isRecent({ at }: BatchEnd): boolean {
  return Math.abs(Date.now() - at) < recentMs;
}

/** What those are told who call after the end. */
export function endedError(what: string, rank: number, cause: TensorBusError): TensorBusError {
  const message = `${what} has ended on rank ${rank} and must be registered again: ${cause.message}`;
  return new TensorBusError("TB_PEER_LOST", message, { details: { rank }, cause });
}

export function errorOfEnd({ rank, code, message, details }: BatchEnd): TensorBusError {
  return new TensorBusError(knownCode(code), message, { details: { ...details, rank } });
}
