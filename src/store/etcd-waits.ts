import { setTimeout as sleep } from "node:timers/promises";
import { TensorBusError } from "../errors.ts";
import { checkAnswer, lookAnswer, watchAnswer } from "./etcd-answers.ts";
import { type EtcdGateway, type EtcdMessage, EtcdUnreachable } from "./etcd-gateway.ts";

/** Keys that are looked up in one transaction: etcd takes 128 operations by default. */
const keysPerTransaction = 100;
/** Before keys are looked up again because a stream broke. */
const pauseMs = 100;

/** Waits for keys by etcd's watch: looks them up, then hears of each change from that revision on, so that none is missed. */
export class EtcdWaits {
  readonly #gateway: EtcdGateway;
  readonly #probeKey: string;
  readonly #beatMs: number;
  readonly #onLost: (error: unknown) => void;
  #waiting = 0;
  #stopBeating: (() => void) | undefined;

  /** `probeKey` is one that this client may read; `onLost` hears that no endpoint answers any more. */
  constructor(gateway: EtcdGateway, probeKey: string, beatMs: number, onLost: (error: unknown) => void) {
    this.#gateway = gateway;
    this.#probeKey = probeKey;
    this.#beatMs = beatMs;
    this.#onLost = onLost;
  }

  /** Resolves once each key (base64) has been there. */
  async wait(keys: readonly string[], signal: AbortSignal): Promise<void> {
    const missing = new Set(keys);
    this.#beat(1);
    try {
      for (;;) {
        const watches = await this.#lookUp(missing, signal);
        if (missing.size === 0) return;
        await this.#watch(watches, missing, signal);
        if (missing.size === 0) return;
        signal.throwIfAborted();
      }
    } finally {
      this.#beat(-1);
    }
  }

  /** Takes those that exist off `missing`; answers a watch for each other one, from the revision after the look. */
  async #lookUp(missing: Set<string>, signal: AbortSignal): Promise<EtcdMessage[]> {
    const keys = [...missing];
    const watches: EtcdMessage[] = [];
    for (let from = 0; from < keys.length; from += keysPerTransaction) {
      const part = keys.slice(from, from + keysPerTransaction);
      const success = part.map((key) => ({ request_range: { key, count_only: true } }));
      const answer = await this.#gateway.ask("/v3/kv/txn", { success }, signal);
      const { header, responses } = checkAnswer(lookAnswer, "txn", answer);
      const revision = String(header.revision + 1n);
      for (const [index, key] of part.entries()) {
        if ((responses[index]?.response_range.count ?? 0) > 0) missing.delete(key);
        else watches.push({ create_request: { key, start_revision: revision, filters: ["NODELETE"] } });
      }
    }
    return watches;
  }

  /** Returns when none is missing, or when they have to be looked up again. */
  async #watch(watches: readonly EtcdMessage[], missing: Set<string>, signal: AbortSignal): Promise<void> {
    try {
      await this.#gateway.stream("/v3/watch", watches, signal, (message) => {
        const answer = checkAnswer(watchAnswer, "watch", message);
        const { events, canceled, cancel_reason: reason, compact_revision: compacted } = answer;
        for (const { kv } of events) missing.delete(kv.key);
        if (canceled && compacted === undefined) {
          throw new TensorBusError("TB_STORE_PROTOCOL", `etcd cancelled a watch: ${reason ?? "no reason"}`);
        }
        return missing.size === 0 || canceled;
      });
    } catch (error) {
      // The look-up finds another endpoint, or that there is none.
      if (!(error instanceof EtcdUnreachable)) throw error;
      await sleep(pauseMs, undefined, { signal });
    }
  }

  /** A member that has gone silent says nothing on a watch either: it is asked for a sign of life meanwhile. */
  #beat(change: 1 | -1): void {
    this.#waiting += change;
    if (change === -1 && this.#waiting === 0) this.#stopBeating?.();
    if (change === -1 || this.#waiting !== 1) return;
    const ending = new AbortController();
    const probe = { key: this.#probeKey, count_only: true, serializable: true };
    const heartbeat = setInterval(() => {
      this.#gateway.ask("/v3/kv/range", probe, ending.signal).catch((error: unknown) => {
        if (error instanceof EtcdUnreachable) this.#onLost(error);
      });
    }, this.#beatMs);
    this.#stopBeating = () => {
      clearInterval(heartbeat);
      ending.abort();
    };
  }
}
