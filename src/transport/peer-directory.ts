import { createHmac, randomBytes } from "node:crypto";
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { type Deadline, waitUntil } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import type { Store } from "../store/store.ts";
import { anyOf } from "./handshake.ts";
import type { WaitOptions } from "./transport.ts";

export interface PeerAddress {
  /** A numeric address, or a name that the reader resolves. */
  readonly host: string;
  readonly port: number;
  /** The identity of the rank for carriers; absent if nobody has to know it before the rank is met. */
  readonly identity?: Uint8Array | undefined;
}

/** What makes the records of one job: ranks of another read nothing of them. */
export interface DirectoryScope {
  readonly transport: string;
  readonly namespace: string;
  readonly generation: bigint;
  /** The first proves what this rank writes, any of them what it reads. */
  readonly secrets: readonly Uint8Array[];
}

/** How many records are asked for at once. */
const lookupsAtOnce = 32;
/** How long an orderly end waits for a store that does not answer. */
const withdrawMs = 1000;

/**
 * The place where ranks publish their addresses and look up those of others. A record carries an HMAC over its key (which holds
 * transport, namespace, generation and rank) and value; one that the secret did not make is `TB_AUTH`.
 */
export class PeerDirectory {
  readonly #store: Store;
  readonly #scope: DirectoryScope;
  readonly #known = new Map<number, string>();
  /** Ranks to be asked for again. What they were known by stays, to tell whether they have moved. */
  readonly #stale = new Set<number>();
  #published: { readonly key: string; readonly record: Buffer } | undefined;

  constructor(store: Store, scope: DirectoryScope) {
    this.#store = store;
    this.#scope = scope;
  }

  async publish(rank: number, address: PeerAddress, options?: WaitOptions): Promise<void> {
    const key = addressKey(this.#scope, rank);
    const record = encodeAddress(this.#scope, rank, address);
    await this.#store.set(key, record, options);
    this.#published = { key, record };
  }

  /**
   * Calls `found` with the numeric addresses of those ranks that are not known yet, once all have published theirs.
   * `TB_TIMEOUT` names the ranks that did not.
   */
  async lookUp(
    ranks: readonly number[],
    deadline: Deadline,
    found: (rank: number, address: PeerAddress) => void,
  ): Promise<void> {
    const unknown = ranks.filter((rank) => !this.#known.has(rank) || this.#stale.has(rank));
    if (unknown.length === 0) return;
    await this.#waitFor(unknown, deadline);
    for (let start = 0; start < unknown.length; start += lookupsAtOnce) {
      const some = unknown.slice(start, start + lookupsAtOnce);
      const records = await Promise.all(some.map((rank) => this.#read(rank, deadline)));
      for (const [index, { address, text }] of records.entries()) {
        found(some[index]!, address);
        this.#known.set(some[index]!, text);
        this.#stale.delete(some[index]!);
      }
    }
  }

  /** The identities of these ranks for carriers, as the store has them now, once all have published their addresses. */
  async identities(
    ranks: readonly number[],
    deadline: Deadline,
  ): Promise<Map<number, Uint8Array | undefined>> {
    await this.#waitFor(ranks, deadline);
    const identities = new Map<number, Uint8Array | undefined>();
    for (let start = 0; start < ranks.length; start += lookupsAtOnce) {
      const some = ranks.slice(start, start + lookupsAtOnce);
      const records = await Promise.all(some.map((rank) => this.#record(rank, deadline)));
      for (const [index, record] of records.entries()) {
        identities.set(some[index]!, decodeAddress(this.#scope, some[index]!, record).identity);
      }
    }
    return identities;
  }

  /** The next `lookUp` asks for this rank again: it was lost, or its address led nowhere. */
  forget(rank: number): void {
    this.#stale.add(rank);
  }

  /** True if the store now says something else of this rank than what was used last. */
  async moved(rank: number, deadline: Deadline): Promise<boolean> {
    const used = this.#known.get(rank);
    const record = await this.#store.get(addressKey(this.#scope, rank), deadline.rest);
    return record !== undefined && Buffer.from(record).toString("latin1") !== used;
  }

  /**
   * Deletes this rank's record, unless a successor has written its own. A store that does not answer any more is left
   * alone: the record then leads to a closed port, and whoever follows it learns that at once.
   */
  async withdraw(): Promise<void> {
    const published = this.#published;
    this.#published = undefined;
    if (published === undefined) return;
    try {
      const stored = await this.#store.get(published.key, { timeoutMs: withdrawMs });
      if (stored !== undefined && published.record.equals(stored)) {
        await this.#store.delete(published.key, { timeoutMs: withdrawMs });
      }
    } catch (error) {
      if (!(error instanceof TensorBusError)) throw error;
    }
  }

  async #waitFor(ranks: readonly number[], deadline: Deadline): Promise<void> {
    const keys = ranks.map((rank) => addressKey(this.#scope, rank));
    try {
      await this.#store.wait(keys, deadline.rest);
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
      const missing = await this.#missing(ranks);
      if (missing.length === 0) throw error;
      throw new TensorBusError("TB_TIMEOUT", `the store has no address of rank ${missing.join(", ")}`, {
        details: { rank: missing[0], ranks: missing },
        cause: error,
      });
    }
  }

  async #missing(ranks: readonly number[]): Promise<number[]> {
    const missing: number[] = [];
    for (let start = 0; start < ranks.length; start += lookupsAtOnce) {
      const some = ranks.slice(start, start + lookupsAtOnce);
      const records = await Promise.all(
        some.map((rank) => this.#store.get(addressKey(this.#scope, rank), { timeoutMs: withdrawMs })),
      );
      missing.push(...some.filter((_, index) => records[index] === undefined));
    }
    return missing;
  }

  async #record(rank: number, deadline: Deadline): Promise<Uint8Array> {
    const record = await this.#store.get(addressKey(this.#scope, rank), deadline.rest);
    if (record !== undefined) return record;
    throw new TensorBusError("TB_PEER_LOST", `rank ${rank} withdrew its address`, { details: { rank } });
  }

  async #read(rank: number, deadline: Deadline): Promise<{ address: PeerAddress; text: string }> {
    const record = await this.#record(rank, deadline);
    const { host, port } = decodeAddress(this.#scope, rank, record);
    const address = { host: await resolve(host, rank, deadline), port };
    return { address, text: Buffer.from(record).toString("latin1") };
  }
}

/** The key of a rank's record. */
export function addressKey(scope: DirectoryScope, rank: number): string {
  return `${scope.transport}/${encodeURIComponent(scope.namespace)}/${scope.generation}/address/${rank}`;
}

/** A rank's record: JSON of host, port, identity to carriers (`place`), a number that tells two incarnations apart, and the proof. */
export function encodeAddress(scope: DirectoryScope, rank: number, address: PeerAddress): Buffer {
  const { host, port } = address;
  const place = address.identity === undefined ? "" : Buffer.from(address.identity).toString("base64");
  const signed = { host, port, place, instance: randomBytes(8).toString("hex") };
  const mac = recordMac(scope.secrets[0]!, addressKey(scope, rank), signed).toString("hex");
  return Buffer.from(JSON.stringify({ ...signed, mac }));
}

function decodeAddress(scope: DirectoryScope, rank: number, record: Uint8Array): PeerAddress {
  const { host, port, place, instance, mac } = parse(record);
  if (
    typeof host !== "string" ||
    typeof port !== "number" ||
    !Number.isInteger(port) ||
    port < 1 ||
    port > 65_535 ||
    typeof place !== "string" ||
    typeof instance !== "string" ||
    typeof mac !== "string"
  ) {
    throw new TensorBusError("TB_PROTOCOL", `the store's record of rank ${rank} is not an address`, {
      details: { rank },
    });
  }
  const key = addressKey(scope, rank);
  const make = (secret: Uint8Array) => recordMac(secret, key, { host, port, place, instance });
  if (!anyOf(scope.secrets, make, Buffer.from(mac, "hex"))) {
    throw new TensorBusError("TB_AUTH", `the address of rank ${rank} was not written with our secret`, {
      details: { rank },
    });
  }
  return { host, port, ...(place === "" ? {} : { identity: Buffer.from(place, "base64") }) };
}

function parse(record: Uint8Array): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(Buffer.from(record).toString("utf8"));
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

interface SignedRecord {
  readonly host: string;
  readonly port: number;
  readonly place: string;
  readonly instance: string;
}

function recordMac(secret: Uint8Array, key: string, record: SignedRecord): Buffer {
  const text = JSON.stringify([key, record.host, record.port, record.place, record.instance]);
  return createHmac("sha256", secret).update("tensorbus address\0").update(text).digest();
}

async function resolve(host: string, rank: number, deadline: Deadline): Promise<string> {
  if (isIP(host) !== 0) return host;
  try {
    return await waitUntil<string>(`looking up ${host}`, deadline, (found, failed) => {
      lookup(host).then(({ address }) => found(address), failed);
      return () => {};
    });
  } catch (error) {
    if (error instanceof TensorBusError) throw error;
    throw new TensorBusError(
      "TB_CONNECT",
      `rank ${rank} is at ${host}, a name that cannot be resolved here: let it advertise an IP address`,
      {
        details: { rank, host },
        cause: error,
      },
    );
  }
}
