/**
 * Records that ranks leave for each other in the store: MessagePack, checked when they are read, split if they are too
 * long for a value, each under a key of bounded length. Whether they are signed is the store's matter (`signedStore`).
 */
import { createHash, randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import * as z from "zod";
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Store } from "../../store/store.ts";
import { pack } from "../queue/commands.ts";
import { checked, decode } from "../queue/decode.ts";

/** The version of what stands in the store: ranks of another one do not understand each other. */
export const recordVersion = 3;

/** A part of a record that is split; below the largest value of any store. */
const partBytes = 512 * 1024;
/** What nobody's record exceeds: 70,000 tensors take about 1 MiB. */
const maxRecordBytes = 256 * 2 ** 20;
const firstPollMs = 10;
const longestPollMs = 250;
/** Records that are asked for at once. */
const readsAtOnce = 32;

const wholeSchema = z.strictObject({ value: z.unknown() });
const headSchema = z.union([
  wholeSchema,
  z.strictObject({
    parts: z
      .int()
      .min(2)
      .max(maxRecordBytes / partBytes),
    bytes: z.int().min(1).max(maxRecordBytes),
    nonce: z.string().regex(/^[0-9a-f]{16}$/),
    sha256: z.instanceof(Uint8Array),
  }),
]);

/** The few names of a job stand in every key: their parts are worked out once. */
const keyParts = new Map<string, string>();
const mostKeyParts = 1000;

/** A name as part of a key: readable at its beginning, of bounded length, distinct for distinct names. */
export function keyPart(name: string): string {
  const known = keyParts.get(name);
  if (known !== undefined) return known;
  const readable = name.replace(/[^\w.-]/g, "_").slice(0, 24);
  const part = `${readable}-${createHash("sha256").update(name).digest("hex").slice(0, 24)}`;
  if (keyParts.size >= mostKeyParts) keyParts.clear();
  keyParts.set(name, part);
  return part;
}

/** Keys of records that were found and not believed: what a wrong secret looks like from here. */
export type Distrust = (key: string) => string | undefined;

export class Rendezvous {
  readonly store: Store;
  readonly #distrust: Distrust;

  constructor(store: Store, distrust: Distrust = () => undefined) {
    this.store = store;
    this.#distrust = distrust;
  }

  /** Writes a record; who reads it sees the old one or the new one. It goes with this process if the store can do that. */
  async publish(key: string, value: unknown, options: DeadlineOptions): Promise<void> {
    const deadline = new Deadline(options);
    const call = () => ({ ...deadline.rest, leased: this.store.capabilities.lease });
    const bytes = pack({ value });
    const limit = Math.min(partBytes, this.store.capabilities.maxValueBytes);
    if (bytes.length <= limit) {
      await this.store.set(key, bytes, call());
      return;
    }
    if (bytes.length > maxRecordBytes) {
      throw new TensorBusError(
        "TB_STORE_VALUE",
        `a record of ${bytes.length} bytes, more than ${maxRecordBytes}`,
        {
          details: { bytes: bytes.length, max: maxRecordBytes },
        },
      );
    }
    const nonce = randomBytes(8).toString("hex");
    const parts = Math.ceil(bytes.length / limit);
    await inGroups(parts, (index) =>
      this.store.set(`${key}/${nonce}/${index}`, bytes.subarray(index * limit, (index + 1) * limit), call()),
    );
    const sha256 = createHash("sha256").update(bytes).digest();
    await this.store.set(key, pack({ parts, bytes: bytes.length, nonce, sha256 }), call());
  }

  /** The record as it stands; `undefined` if there is none, or one that is being replaced. */
  async read<T>(key: string, schema: z.ZodType<T>, options: DeadlineOptions): Promise<T | undefined> {
    const deadline = new Deadline(options);
    const value = await this.store.get(key, deadline.rest);
    if (value === undefined) return undefined;
    const head = accepted(key, decode(headSchema, value));
    if (!("parts" in head)) return accepted(key, checked(schema, head.value));
    const parts = await inGroups(head.parts, (index) =>
      this.store.get(`${key}/${head.nonce}/${index}`, deadline.rest),
    );
    if (parts.includes(undefined)) return undefined;
    const bytes = Buffer.concat(parts as Uint8Array[]);
    const sha256 = createHash("sha256").update(bytes).digest();
    if (bytes.length !== head.bytes || !sha256.equals(head.sha256)) return undefined;
    const { value: whole } = accepted(key, decode(wholeSchema, bytes));
    return accepted(key, checked(schema, whole));
  }

  /** Reads many records, some at a time. */
  readAll<T>(
    keys: readonly string[],
    schema: z.ZodType<T>,
    options: DeadlineOptions,
  ): Promise<(T | undefined)[]> {
    const deadline = new Deadline(options);
    return inGroups(keys.length, (index) => this.read(keys[index]!, schema, deadline.rest));
  }

  /** Removes a record, its parts first: what is cut short is found again by its head. */
  async remove(key: string, options: DeadlineOptions): Promise<void> {
    const deadline = new Deadline(options);
    const value = await this.store.get(key, deadline.rest);
    if (value === undefined) return;
    const head = decode(headSchema, value);
    if (head.success && "parts" in head.data) {
      const { parts, nonce } = head.data;
      await inGroups(parts, (index) => this.store.delete(`${key}/${nonce}/${index}`, deadline.rest));
    }
    await this.store.delete(key, deadline.rest);
  }

  /**
   * Waits for records, and then for one that `accept` takes: what it gives. It looks again at records that it refuses by
   * `undefined`, which are those of an earlier time. `TB_TIMEOUT` says what was waited for; `TB_AUTH` if there was
   * something that no secret of ours has signed.
   */
  async await<T>(
    keys: readonly string[],
    accept: (rest: DeadlineOptions) => Promise<T | undefined>,
    what: string,
    options: DeadlineOptions,
    details: Record<string, unknown> = {},
  ): Promise<T> {
    const deadline = new Deadline(options);
    try {
      for (let pauseMs = firstPollMs; ; pauseMs = Math.min(2 * pauseMs, longestPollMs)) {
        await this.store.wait(keys, deadline.rest);
        const accepted = await accept(deadline.rest);
        if (accepted !== undefined) return accepted;
        await pause(Math.min(pauseMs, deadline.remainingMs), deadline);
      }
    } catch (error) {
      throw this.#explain(error, keys, what, details);
    }
  }

  #explain(error: unknown, keys: readonly string[], what: string, details: Record<string, unknown>): unknown {
    if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") return error;
    const reason = keys.map(this.#distrust).find((found) => found !== undefined);
    if (reason === undefined) {
      return new TensorBusError("TB_TIMEOUT", `${what} took too long`, { details, cause: error });
    }
    const message = `${what}: there is a record that was not written with our secret (${reason})`;
    return new TensorBusError("TB_AUTH", message, { details, cause: error });
  }
}

async function pause(milliseconds: number, { signal, remainingMs }: Deadline): Promise<void> {
  if (remainingMs === 0) throw new TensorBusError("TB_TIMEOUT", "the deadline has passed");
  await sleep(milliseconds, undefined, signal === undefined ? {} : { signal }).catch((cause) => {
    throw new TensorBusError("TB_CANCELLED", "it was cancelled", { cause });
  });
}

/** Calls for each index, some at a time. */
export async function inGroups<T>(count: number, call: (index: number) => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  for (let start = 0; start < count; start += readsAtOnce) {
    const group = Array.from({ length: Math.min(readsAtOnce, count - start) }, (_, index) =>
      call(start + index),
    );
    results.push(...(await Promise.all(group)));
  }
  return results;
}

function accepted<T>(key: string, parsed: z.ZodSafeParseResult<T>): T {
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new TensorBusError(
    "TB_VERSION",
    `the record ${key} was written by another version: ${issue?.path.join(".")}: ${issue?.message}`,
    { details: { key } },
  );
}
