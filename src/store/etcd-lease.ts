import { checkAnswer, grantAnswer, renewalAnswer } from "./etcd-answers.ts";
import { type EtcdGateway, isLeaseGone } from "./etcd-gateway.ts";

/** The lease of this client ran out: its leased keys are gone, or will be. */
class LeaseGone extends Error {
  override readonly name = "LeaseGone";
}

/** A lease is renewed this many times before it would run out. */
const renewalsPerLease = 3;
/** A timer that is longer fires at once. */
const longestTimerMs = 2 ** 31 - 1;

/** One lease of etcd, taken when it is first needed and renewed until `end`; `onGone` hears that it could not be kept. */
export class EtcdLease {
  readonly #gateway: EtcdGateway;
  readonly #seconds: number;
  readonly #onGone: (error: unknown) => void;
  readonly #renewing = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #id: Promise<string> | undefined;

  constructor(gateway: EtcdGateway, seconds: number, onGone: (error: unknown) => void) {
    this.#gateway = gateway;
    this.#seconds = Math.max(1, Math.ceil(seconds));
    this.#onGone = onGone;
  }

  /** The lease's number. */
  id(): Promise<string> {
    // Not by the caller's signal: others may wait for the same lease.
    this.#id ??= this.#grant().catch((error: unknown) => {
      this.#id = undefined;
      throw error;
    });
    return this.#id;
  }

  /** Stops renewing; what it returns gives the lease back, and the keys with it. */
  end(): (signal: AbortSignal) => Promise<void> {
    this.#renewing.abort();
    clearTimeout(this.#timer);
    const id = this.#id;
    this.#id = undefined;
    return async (signal) => {
      if (id !== undefined) await this.#gateway.ask("/v3/lease/revoke", { ID: await id }, signal);
    };
  }

  async #grant(): Promise<string> {
    const { signal } = this.#renewing;
    const answer = await this.#gateway.ask("/v3/lease/grant", { TTL: this.#seconds }, signal);
    const { ID: id, TTL } = checkAnswer(grantAnswer, "lease/grant", answer);
    this.#renew(id, TTL * 1000);
    return id;
  }

  #renew(id: string, ttlMs: number): void {
    const { signal } = this.#renewing;
    if (signal.aborted) return;
    this.#timer = setTimeout(
      () => {
        // A renewal that comes too late is none: etcd then answers that it does not know the lease.
        const renewal = this.#gateway.ask("/v3/lease/keepalive", { ID: id }, signal);
        const checked = renewal.then((answer) => checkAnswer(renewalAnswer, "lease/keepalive", answer));
        checked.then(
          ({ result: { TTL: left } }) => {
            if (left > 0) this.#renew(id, left * 1000);
            else if (!signal.aborted) this.#onGone(new LeaseGone("the lease ran out"));
          },
          (error: unknown) => {
            if (!signal.aborted)
              this.#onGone(isLeaseGone(error) ? new LeaseGone("the lease ran out") : error);
          },
        );
      },
      Math.min(ttlMs / renewalsPerLease, longestTimerMs),
    );
    // An idle process may end; its lease then runs out, as it should.
    this.#timer.unref();
  }
}
