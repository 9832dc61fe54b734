import { randomInt } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { TensorBusError } from "../errors.ts";
import { checkAnswer, lookAnswer, watchAnswer } from "./etcd-answers.ts";
import { type EtcdGateway, EtcdUnreachable } from "./etcd-gateway.ts";

/** Keys that are looked up in one transaction: etcd takes 128 operations by default. */
const keysPerTransaction = 100;
/** How long to wait before keys are looked up again after a stream broke. */
const pauseMs = 100;

type WatchEnd = "came" | "compacted" | "interrupted";

/**
 * Waits for keys by etcd's watch: looks them up, then hears of changes from that revision on, so that none is missed.
 *
 * A stream watches one key. etcd's gateway (HTTP/1.1) reads no more of a request once it has begun to answer, so of
 * several watches in one request it forgets those that it has not read by then, and says nothing. Which key comes last is
 * not known: one is picked at random, so that on average half of the others are there when it comes.
 */
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
      let since = await this.#lookUp(missing, signal);
      while (missing.size > 0) {
        const picked = [...missing][randomInt(missing.size)]!;
        const end = await this.#watch(picked, since, signal);
        if (end === "came") missing.delete(picked);
        const now = await this.#lookUp(missing, signal);
        // Watches go back to the first look, for a key that came and went meanwhile; as far as etcd remembers.
        if (end === "compacted") since = now;
      }
    } finally {
      this.#beat(-1);
    }
  }

  /** Takes those that exist off `missing`; answers the revision after the first part of the look. */
  async #lookUp(missing: Set<string>, signal: AbortSignal): Promise<bigint> {
    const keys = [...missing];
    let since: bigint | undefined;
    for (let from = 0; from < keys.length; from += keysPerTransaction) {
      const part = keys.slice(from, from + keysPerTransaction);
      const success = part.map((key) => ({ request_range: { key, count_only: true } }));
      const answer = await this.#gateway.ask("/v3/kv/txn", { success }, signal);
      const { header, responses } = checkAnswer(lookAnswer, "txn", answer);
      since ??= header.revision + 1n;
      for (const [index, key] of part.entries()) {
        if ((responses[index]?.response_range.count ?? 0) > 0) missing.delete(key);
      }
    }
    return since ?? 0n;
  }

  /** Returns when the key has come at `since` or later, or when the keys have to be looked up again. */
  async #watch(key: string, since: bigint, signal: AbortSignal): Promise<WatchEnd> {
    const request = { create_request: { key, start_revision: String(since), filters: ["NODELETE"] } };
    let end: WatchEnd = "interrupted";
    try {
      await this.#gateway.stream("/v3/watch", request, signal, (message) => {
        const answer = checkAnswer(watchAnswer, "watch", message);
        const { events, canceled, cancel_reason: reason, compact_revision: compacted } = answer;
        if (events.length > 0) end = "came";
        else if (canceled && compacted !== undefined) end = "compacted";
        else if (canceled) {
          throw new TensorBusError("TB_STORE_PROTOCOL", `etcd cancelled a watch: ${reason ?? "no reason"}`);
        }
        return end !== "interrupted";
      });
    } catch (error) {
      // The look-up finds another endpoint, or that there is none.
      if (!(error instanceof EtcdUnreachable)) throw error;
      await sleep(pauseMs, undefined, { signal });
    }
    return end;
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
