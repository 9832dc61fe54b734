import { constants } from "node:os";
import { Deadline } from "../deadline.ts";
import { errorCodes, TensorBusError } from "../errors.ts";
import { transferCarrier } from "../ffi/carriers.ts";
import type { TransferEvent } from "../ffi/session.ts";
import * as native from "../ffi/session.ts";
import type { EventPipe } from "./event-pipe.ts";
import type { AwaitedRank, PostOptions, PreparedTransfer, RoundProgress, RoundReport } from "./transport.ts";

interface TransferSetup {
  readonly session: bigint;
  readonly transfer: bigint;
  readonly key: string;
  readonly rank: number;
  /** Other ranks that the program deals with. */
  readonly peers: readonly number[];
  /** How many ranks it has to do with at most, with those that it begins rounds together with. */
  readonly ranks: number;
  /** The transport that is meant if buckets stream over connections. */
  readonly stream: string;
  readonly pipe: EventPipe;
  /** Called once the transfer is gone. */
  readonly forget: () => void;
}

interface Pending {
  readonly resolve: (event: TransferEvent) => void;
  readonly reject: (error: unknown) => void;
}

/** A transfer of native code. One thing is under way at a time; it ends with its event, and with nothing else. */
export class NativeTransfer implements PreparedTransfer {
  readonly key: string;
  readonly #setup: TransferSetup;
  #stagingBytes = 0n;
  #transports: ReadonlyMap<number, string> = new Map();
  #lastRound = 0;
  #pending: Pending | undefined;
  #underWay: Promise<TransferEvent> | undefined;
  #ended: unknown;

  constructor(setup: TransferSetup) {
    this.key = setup.key;
    this.#setup = setup;
  }

  get stagingBytes(): bigint {
    return this.#stagingBytes;
  }

  get transports(): ReadonlyMap<number, string> {
    return this.#transports;
  }

  /** Resolves once the peers agreed; a transfer that could not be prepared is released. */
  async prepared(deadline: Deadline): Promise<void> {
    try {
      await this.#outcome(`preparing ${this.key}`, deadline.signal);
    } catch (error) {
      await this.release();
      throw error;
    }
    const { session, transfer, peers, stream } = this.#setup;
    this.#stagingBytes = native.transferProgress(session, transfer).stagingBytes;
    this.#transports = new Map(
      peers.map((rank) => {
        const carrier = transferCarrier(session, transfer, rank);
        return [rank, carrier === "stream" ? stream : carrier];
      }),
    );
  }

  async post(options: PostOptions = {}): Promise<RoundReport> {
    this.#checkUsable();
    const deadline = new Deadline(options);
    const round = options.round ?? this.#lastRound + 1;
    if (!Number.isSafeInteger(round) || round <= this.#lastRound) {
      throw new TypeError(`round ${round} does not follow round ${this.#lastRound}`);
    }
    if (this.#pending !== undefined) {
      throw new TensorBusError("TB_BUSY", `a round of ${this.key} is still under way`, {
        details: { key: this.key },
      });
    }
    // A round that is cancelled before it began is begun all the same, so that its end is told to all others.
    const { session, transfer } = this.#setup;
    if (deadline.signal?.aborted) native.postCancelledTransfer(session, transfer, BigInt(round));
    else native.postTransfer(session, transfer, BigInt(round), deadline.remainingNs);
    this.#lastRound = round;
    const event = await this.#outcome(`round ${round} of ${this.key}`, deadline.signal).catch((error) => {
      throw this.#explain(error);
    });
    return {
      round,
      bytesSent: event.bytesSent,
      bytesReceived: event.bytesReceived,
      bytesCopied: event.bytesCopied,
      seconds: Number(event.nanoseconds) / 1e9,
      stagingHighWater: event.stagingHighWater,
    };
  }

  progress(): RoundProgress {
    this.#checkUsable();
    const { round, bytesDone, bytesTotal } = native.transferProgress(
      this.#setup.session,
      this.#setup.transfer,
    );
    return { round: Number(round), bytesDone, bytesTotal };
  }

  awaited(): readonly AwaitedRank[] {
    this.#checkUsable();
    return native.transferWaits(this.#setup.session, this.#setup.transfer, this.#setup.ranks);
  }

  async release(): Promise<void> {
    if (this.#ended !== undefined) return;
    native.releaseTransfer(this.#setup.session, this.#setup.transfer);
    this.#ended = new TensorBusError("TB_CLOSED", `${this.key} was released`);
    this.#setup.forget();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pending = this.#underWay;
    if (pending !== undefined && this.#ended === undefined) {
      native.cancelTransfer(this.#setup.session, this.#setup.transfer, errorCodes.TB_CANCELLED.number);
      await pending.catch(() => {});
    }
    await this.release();
  }

  /** Called with the events of this transfer. */
  settle(event: TransferEvent): void {
    const pending = this.#pending;
    this.#pending = undefined;
    if (event.error === undefined) pending?.resolve(event);
    else pending?.reject(event.error);
  }

  /** Called when the session begins to end: what is under way is still to be settled, nothing else may begin. */
  refuse(reason: unknown): void {
    this.#ended ??= reason;
  }

  /** Called when the session has ended: nothing touches the memory any more, and no event will come. */
  end(reason: unknown): void {
    this.#ended ??= reason;
    this.#pending?.reject(reason);
    this.#pending = undefined;
  }

  async #outcome(what: string, signal: AbortSignal | undefined): Promise<TransferEvent> {
    const { session, transfer, pipe } = this.#setup;
    const cancel = () => {
      if (this.#ended === undefined) native.cancelTransfer(session, transfer, errorCodes.TB_CANCELLED.number);
    };
    const underWay = new Promise<TransferEvent>((resolve, reject) => {
      this.#pending = { resolve, reject };
    });
    this.#underWay = underWay;
    pipe.hold();
    signal?.addEventListener("abort", cancel, { once: true });
    if (signal?.aborted) cancel();
    try {
      return await underWay;
    } catch (error) {
      throw signal?.aborted && isCancellationOf(error, this.#setup.rank)
        ? new TensorBusError("TB_CANCELLED", `${what} was cancelled`, {
            details: error.details,
            cause: signal.reason,
          })
        : error;
    } finally {
      signal?.removeEventListener("abort", cancel);
      pipe.unhold();
      this.#underWay = undefined;
    }
  }

  /** Says of a round that failed what its code does not. */
  #explain(error: unknown): unknown {
    if (!(error instanceof TensorBusError)) return error;
    const { errno, ...details } = error.details;
    if (errno === constants.errno.ESTALE) {
      return new TensorBusError(error.code, error.message, { details: { ...details, hadFailed: true } });
    }
    if (error.code !== "TB_TIMEOUT" || this.#ended !== undefined) return error;
    const awaited = this.awaited();
    const absent = awaited.filter((each) => each.absent).map(({ rank }) => rank);
    const waitsFor = awaited.map(({ rank }) => rank);
    return new TensorBusError(error.code, error.message, { details: { ...error.details, absent, waitsFor } });
  }

  #checkUsable(): void {
    if (this.#ended !== undefined) {
      throw new TensorBusError("TB_CLOSED", `${this.key} has ended`, { cause: this.#ended });
    }
  }
}

function isCancellationOf(error: unknown, rank: number): error is TensorBusError {
  return error instanceof TensorBusError && error.code === "TB_CANCELLED" && error.details["rank"] === rank;
}
