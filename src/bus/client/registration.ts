/** The batches that a client has registered, and the memory that they hold until the agent has let go of it. */
import { type Observable, Subject } from "rxjs";
import type { DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { RoundProgress } from "../../transport/transport.ts";
import { logger } from "../process/logger.ts";
import { type BatchId, batchKey, type CommandResult } from "../queue/commands.ts";
import type { AgentLink } from "./agent-link.ts";
import type { RegionHold } from "./memory.ts";
import type { RoundEvent } from "./round-events.ts";
import { followRounds } from "./round-progress.ts";

/** The plan of each direction as all ranks hold it, or the reason why there is none. */
export type BatchPlans = Readonly<Pick<CommandResult<"RegisterTensors">, "send" | "recv">>;

interface RegistrationOptions {
  readonly link: AgentLink;
  readonly batchId: BatchId;
  readonly pairNames: readonly string[];
  readonly instance: bigint;
  readonly plans: BatchPlans;
  readonly hold: RegionHold;
}

/** One batch, from its registration until it is closed or its agent has ended. */
export class Registration {
  readonly batchId: BatchId;
  readonly pairNames: readonly string[];
  readonly instance: bigint;
  readonly plans: BatchPlans;
  readonly #link: AgentLink;
  readonly #hold: RegionHold;
  readonly #events = new Subject<RoundEvent>();
  readonly #onEnd: () => void;
  readonly #unlisten: () => void;
  #over: TensorBusError | undefined;
  #last: RoundEvent | undefined;
  #closing: Promise<unknown> | undefined;
  #ended: TensorBusError | undefined;

  constructor(options: RegistrationOptions, onEnd: () => void) {
    this.batchId = options.batchId;
    this.pairNames = options.pairNames;
    this.instance = options.instance;
    this.plans = options.plans;
    this.#link = options.link;
    this.#hold = options.hold;
    this.#onEnd = onEnd;
    this.#unlisten = this.#link.listen(options.instance, (error) => {
      this.#over = error;
      this.tell({ kind: "ended", error });
    });
  }

  get isOpen(): boolean {
    return this.#closing === undefined && this.#ended === undefined;
  }

  /** Why the batch is over on all ranks; `undefined` while it stands, as far as the agent has told. */
  get over(): TensorBusError | undefined {
    return this.#over;
  }

  get events$(): Observable<RoundEvent> {
    return this.#events.asObservable();
  }

  get progress$(): Observable<RoundProgress> {
    return followRounds(
      this.#events,
      () => this.#last,
      () => this.#askProgress(),
    );
  }

  /** `TB_CLOSED` once it was closed, else why it has ended. */
  requireOpen(): void {
    if (this.#ended !== undefined) throw this.#ended;
    if (this.#closing !== undefined) throw this.#closedError();
  }

  /** `TB_REGION` if memory of it was detached. */
  checkMemory(): void {
    this.#hold.check();
  }

  tell(event: RoundEvent): void {
    if (this.#ended !== undefined) return;
    this.#last = event;
    this.#events.next(event);
  }

  /** Has the agent free the batch. A second call awaits the first, if it awaits at all. */
  async close({
    blocking = true,
    ...options
  }: DeadlineOptions & { readonly blocking?: boolean }): Promise<void> {
    if (this.#ended !== undefined) return;
    if (this.#closing === undefined) {
      const body = { batch: this.batchId, instance: this.instance };
      const { queued, outcome } = this.#link.submit("CleanupBatch", this.batchId, body, {
        blocking,
        ...options,
      });
      this.#closing = outcome;
      outcome.then(
        () => this.end(this.#closedError()),
        (error) => this.#closeFailed(error),
      );
      try {
        await queued;
      } catch (error) {
        // It does not stand in the queue: a later call tries again.
        this.#closing = undefined;
        if (this.#ended === undefined) throw error;
      }
    }
    if (blocking) await this.#outcome();
  }

  /** The agent has let go of it, or is gone. */
  end(error: TensorBusError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    this.#unlisten();
    this.#hold.release();
    this.#events.complete();
    this.#onEnd();
  }

  /** A question that finds no room in the queue is not worth waiting for. */
  async #askProgress(): Promise<RoundProgress | undefined> {
    const body = { batch: this.batchId, instance: this.instance };
    const { outcome } = this.#link.submit("QueryStatus", this.batchId, body, { blocking: false });
    return (await outcome).progress;
  }

  async #outcome(): Promise<void> {
    try {
      await this.#closing;
    } catch (error) {
      // An agent or a client that has ended has freed the batch too.
      if (!isGone(error)) throw error;
    }
  }

  #closeFailed(error: unknown): void {
    if (isGone(error)) this.end(this.#closedError());
    else logger.warn({ err: error, batch: this.batchId }, "a batch could not be closed");
  }

  #closedError(): TensorBusError {
    return new TensorBusError("TB_CLOSED", `batch ${String(this.batchId)} was closed`, {
      details: { batchId: this.batchId },
    });
  }
}

function isGone(error: unknown): boolean {
  return error instanceof TensorBusError && (error.code === "TB_AGENT_LOST" || error.code === "TB_CLOSED");
}

/** The registrations of one client. It does not know the client. */
export class Registrations {
  readonly #all = new Set<Registration>();

  /** The last one of that id: a client that stands on both sides of a batch has two. */
  get(batchId: BatchId): Registration | undefined {
    const key = batchKey(batchId);
    return [...this.#all].findLast((registration) => batchKey(registration.batchId) === key);
  }

  add(options: RegistrationOptions): Registration {
    const registration: Registration = new Registration(options, () => this.#all.delete(registration));
    this.#all.add(registration);
    return registration;
  }

  endAll(error: TensorBusError): void {
    for (const registration of [...this.#all]) registration.end(error);
  }
}
