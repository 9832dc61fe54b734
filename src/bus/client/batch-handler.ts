/** A batch that was registered, as its client's caller holds it. */
import type { Observable } from "rxjs";
import { TensorBusError } from "../../errors.ts";
import type { RoundProgress } from "../../transport/transport.ts";
import type { Semaphore } from "../process/semaphore.ts";
import type { BatchId } from "../queue/commands.ts";
import type { CallOptions, TensorBusClient, TransferOptions } from "./client.ts";
import type { BatchPlans, Registration } from "./registration.ts";
import type { PendingRound, RoundEvent, TransferResult } from "./round-events.ts";

/**
 * Made by `TensorBusClient.registerTensors`. It does not keep its client alive; the batch ends with the client, or with
 * `close`, and not with the handler.
 */
export class BatchHandler implements AsyncDisposable {
  readonly batchId: BatchId;
  /** The pairs of the batch's tensors, each once, in the order of the tensors. */
  readonly pairNames: readonly string[];
  readonly #client: WeakRef<TensorBusClient>;
  readonly #registration: Registration;

  /** Only for `TensorBusClient`. */
  constructor(client: TensorBusClient, registration: Registration) {
    this.batchId = registration.batchId;
    this.pairNames = registration.pairNames;
    this.#client = new WeakRef(client);
    this.#registration = registration;
  }

  /** `TB_CLOSED` once the client was collected. */
  get client(): TensorBusClient {
    const client = this.#client.deref();
    if (client !== undefined) return client;
    throw new TensorBusError(
      "TB_CLOSED",
      `the client of batch ${String(this.batchId)} was garbage-collected: keep a reference to it`,
      {
        details: { batchId: this.batchId },
      },
    );
  }

  /**
   * The digest of the plan that all ranks hold, in each direction of this side: that of a dry run of the same layouts and
   * tensors, in the order of pairs, then of the lengths of names, then of names. Or why a direction cannot be used.
   */
  get plans(): BatchPlans {
    return this.#registration.plans;
  }

  /** True until it was closed, or its agent ended. */
  get isOpen(): boolean {
    return this.#registration.isOpen;
  }

  /**
   * Why the batch is over on all ranks of both sides, and has to be registered anew: a client closed it, a process died, a peer
   * was lost. The agent tells that by itself, and `events$` with `ended`, whether anything is transferred or not.
   */
  get over(): TensorBusError | undefined {
    return this.#registration.over;
  }

  /** The rounds of this batch as they begin, end and fail, and its end; completes when the batch is closed. */
  get events$(): Observable<RoundEvent> {
    return this.#registration.events$;
  }

  /**
   * How far the round under way is on this rank, ten times a second, and once more at its end; completes when the batch is
   * closed. Only who subscribes has the agent asked.
   */
  get progress$(): Observable<RoundProgress> {
    return this.#registration.progress$;
  }

  /** Like the client's method, for this registration: `TB_CLOSED` once it was closed, `TB_AGENT_LOST` once its agent has ended. */
  async transfer(
    direction: "send" | "recv",
    options: TransferOptions = {},
  ): Promise<Semaphore<TransferResult>> {
    const registration = this.#registration;
    registration.requireOpen();
    return this.client.transfer(this.batchId, direction, { ...options, registration });
  }

  /** Like the client's method, for this registration. */
  async queryTransferSignal(options: CallOptions = {}): Promise<boolean> {
    const registration = this.#registration;
    registration.requireOpen();
    return this.client.queryTransferSignal(this.batchId, { ...options, registration });
  }

  /** Like the client's method, for this registration. */
  async pending(options: CallOptions = {}): Promise<PendingRound | undefined> {
    const registration = this.#registration;
    registration.requireOpen();
    return this.client.pending(this.batchId, { ...options, registration });
  }

  /**
   * Frees the batch in the agent. A second call does nothing, and one that took the same id later is left alone. Without
   * `blocking` it returns once the command is queued.
   */
  async close(options: CallOptions = {}): Promise<void> {
    await this.#registration.close(options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
