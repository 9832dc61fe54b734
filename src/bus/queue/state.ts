/**
 * What an agent knows and must not forget with its process: who it is, its pairs, batches and rounds, and the result of
 * every command, errors included, until its client has read it. Written by the agent alone; clients read.
 */
import * as z from "zod";
import type { DeadlineOptions } from "../../deadline.ts";
import { isErrorCode, TensorBusError } from "../../errors.ts";
import type { EventPort } from "../process/event-port.ts";
import { pack, unpack } from "./commands.ts";
import { type BinaryDatabase, type Environment, keyOf, openEnvironment, rangeOf } from "./environment.ts";

const u64 = z
  .bigint()
  .min(0n)
  .max(2n ** 64n - 1n);

const agentSchema = z.strictObject({
  /** Rises with every agent on these paths. */
  generation: u64,
  rank: z.int().min(0),
  pid: z.int().min(1),
  startTime: u64,
  boot: z.string(),
  uid: z.int().min(0),
  /** Names of its wake semaphore and of its heartbeat. */
  wake: z.string(),
  heartbeat: z.string(),
  /** True once it takes commands, false again while it drains. */
  ready: z.boolean(),
});
export type AgentRecord = z.infer<typeof agentSchema>;

/** Records under text keys. What they hold is for the agent to say. */
export interface Table<T> {
  get(key: string): T | undefined;
  /** Inside of `State.write` only. */
  put(key: string, value: T): void;
  /** Inside of `State.write` only; false if there was none. */
  remove(key: string): boolean;
  entries(): [string, T][];
}

/** What of the state pairs and batches need: tables, and writes that are whole or nothing. */
export interface Records {
  table<T>(name: "pairs" | "batches" | "rounds", schema: z.ZodType<T>): Table<T>;
  /** All changes of `work`, which must be synchronous, or none. */
  write<T>(what: string, work: () => T, deadline?: DeadlineOptions): Promise<T>;
}

/** How a command ended. */
export type Outcome =
  | { readonly ok: true; readonly value: unknown }
  | { readonly ok: false; readonly error: TensorBusError };

const outcomeSchema = z.union([
  z.strictObject({ ok: z.literal(true), value: z.unknown() }),
  z.strictObject({
    ok: z.literal(false),
    code: z.string().refine(isErrorCode, "is not an error code"),
    message: z.string(),
    details: z.record(z.string(), z.unknown()),
  }),
]);

/** What stands in the state, checked again: another version may have written it. */
function readRecord<T>(schema: z.ZodType<T>, what: string, bytes: Uint8Array): T {
  const parsed = schema.safeParse(unpack(bytes));
  if (parsed.success) return parsed.data;
  throw new TensorBusError(
    "TB_BUS_FORMAT",
    `${what} in the state is malformed: ${z.prettifyError(parsed.error)}`,
  );
}

/** Details of an error as what MessagePack can carry; what it cannot is told as text. */
export function portable(value: unknown, depth = 0): unknown {
  if (value === null || ["string", "number", "boolean"].includes(typeof value)) return value;
  if (typeof value === "bigint") {
    return value >= -(2n ** 63n) && value < 2n ** 64n ? value : String(value);
  }
  if (value instanceof Uint8Array) return value;
  if (typeof value !== "object" || depth > 8) return String(value);
  if (Array.isArray(value)) return value.map((item) => portable(item, depth + 1));
  const entries = Object.entries(value).filter(([, item]) => item !== undefined);
  return Object.fromEntries(entries.map(([key, item]) => [key, portable(item, depth + 1)]));
}

function encodeOutcome(outcome: Outcome): Buffer {
  if (outcome.ok) return pack({ ok: true, value: outcome.value ?? null });
  const { code, message, details } = outcome.error;
  return pack({ ok: false, code, message, details: portable(details) });
}

function decodeOutcome(bytes: Uint8Array): Outcome {
  const outcome = readRecord(outcomeSchema, "a result", bytes);
  if (outcome.ok) return { ok: true, value: outcome.value };
  return {
    ok: false,
    error: new TensorBusError(outcome.code, outcome.message, { details: outcome.details }),
  };
}

interface StateOptions {
  /** A folder; made if it is missing. */
  readonly path: string;
  readonly port: EventPort;
  readonly stuckMs?: number;
}

/** First bytes of the keys; a result stands under its client, then its command. */
const kinds = { agent: 1, results: 2, pairs: 3, batches: 4, rounds: 5 } as const;
const agentKey = keyOf(kinds.agent);
const maxKeyBytes = 1900;

export async function openState(options: StateOptions, deadline: DeadlineOptions = {}): Promise<State> {
  return new State(await openEnvironment({ ...options, kind: "state" }, deadline));
}

export class State implements Records, AsyncDisposable {
  readonly environment: Environment;
  readonly #records: BinaryDatabase;

  constructor(environment: Environment) {
    this.environment = environment;
    this.#records = environment.root;
  }

  /** All changes of `work`, which must be synchronous, or none: `Environment.write`. */
  write<T>(what: string, work: () => T, deadline?: DeadlineOptions): Promise<T> {
    return this.environment.write(what, work, deadline);
  }

  /** The record that was committed last. */
  read<T>(work: () => T): T {
    return this.environment.read(work);
  }

  /** The agent that wrote itself here last; it may have died since. */
  agent(): AgentRecord | undefined {
    const bytes = this.read(() => this.#records.get(agentKey));
    return bytes === undefined ? undefined : readRecord(agentSchema, "the agent", bytes);
  }

  /**
   * Writes a new agent in place of the last one. Its generation is larger than any that was given here, and than those
   * of an earlier boot as far as the wall clock tells. Gives the predecessor, whose semaphore and heartbeat are left.
   */
  enthrone(
    agent: Omit<AgentRecord, "generation">,
    deadline?: DeadlineOptions,
  ): Promise<{ agent: AgentRecord; predecessor: AgentRecord | undefined }> {
    return this.write(
      "writing the agent's identity",
      () => {
        const bytes = this.#records.get(agentKey);
        const predecessor = bytes === undefined ? undefined : readRecord(agentSchema, "the agent", bytes);
        const next = (predecessor?.generation ?? 0n) + 1n;
        const now = BigInt(Date.now());
        const record = agentSchema.parse({ ...agent, generation: next > now ? next : now });
        this.#records.put(agentKey, pack(record));
        return { agent: record, predecessor };
      },
      deadline,
    );
  }

  /** Changes what the agent says of itself, inside of `write`. */
  putAgent(agent: AgentRecord): void {
    this.#records.put(agentKey, pack(agentSchema.parse(agent)));
  }

  /** The result of a client's command, once there is one. */
  result(client: bigint, command: bigint): Outcome | undefined {
    const bytes = this.read(() => this.#records.get(keyOf(kinds.results, client, command)));
    return bytes === undefined ? undefined : decodeOutcome(bytes);
  }

  /** All results of a client that stand here, in the order of its commands, `from` that one on. */
  results(client: bigint, from = 0n): [bigint, Outcome][] {
    const range = { start: keyOf(kinds.results, client, from), end: keyOf(kinds.results, client + 1n, 0n) };
    const entries = this.read(() => [...this.#records.getRange(range)]);
    return entries.map(({ key, value }) => [key.readBigUInt64BE(9), decodeOutcome(value)]);
  }

  hasResult(client: bigint, command: bigint): boolean {
    return this.read(() => this.#records.get(keyOf(kinds.results, client, command))) !== undefined;
  }

  /** Inside of `write`: how a command ended. The first result stands. */
  putResult(client: bigint, command: bigint, outcome: Outcome): void {
    const key = keyOf(kinds.results, client, command);
    if (this.#records.get(key) === undefined) this.#records.put(key, encodeOutcome(outcome));
  }

  /** Inside of `write`: forgets results that their client has read. */
  removeResults(client: bigint, commands: readonly bigint[]): void {
    for (const command of commands) this.#records.remove(keyOf(kinds.results, client, command));
  }

  /** Inside of `write`: forgets all results of a client that is gone; how many there were. */
  removeClient(client: bigint): number {
    const range = { start: keyOf(kinds.results, client, 0n), end: keyOf(kinds.results, client + 1n, 0n) };
    const keys = [...this.#records.getKeys(range)].map((key) => Buffer.from(key));
    for (const key of keys) this.#records.remove(key);
    return keys.length;
  }

  /** Clients that have results here. */
  clientsWithResults(): bigint[] {
    return this.read(() => {
      const clients: bigint[] = [];
      let start = keyOf(kinds.results, 0n, 0n);
      for (;;) {
        const [key] = [...this.#records.getKeys({ start, end: rangeOf(kinds.results).end, limit: 1 })];
        if (key === undefined) return clients;
        const client = key.readBigUInt64BE(1);
        clients.push(client);
        start = keyOf(kinds.results, client + 1n, 0n);
      }
    });
  }

  /** A table of maps that `schema` checks, both when they are written and when they are read. */
  table<T>(name: "pairs" | "batches" | "rounds", schema: z.ZodType<T>): Table<T> {
    const records = this.#records;
    const kind = kinds[name];
    const recordKey = (key: string) => {
      const bytes = Buffer.concat([keyOf(kind), Buffer.from(key)]);
      if (bytes.length <= maxKeyBytes) return bytes;
      throw new TensorBusError(
        "TB_COMMAND",
        `a key has ${bytes.length} bytes, and at most ${maxKeyBytes} are allowed`,
        { details: { key } },
      );
    };
    return {
      get: (key) => {
        const bytes = this.read(() => records.get(recordKey(key)));
        return bytes === undefined ? undefined : readRecord(schema, `${name} ${key}`, bytes);
      },
      put: (key, value) => {
        records.put(recordKey(key), pack(schema.parse(value)));
      },
      remove: (key) => {
        const known = records.get(recordKey(key)) !== undefined;
        if (known) records.remove(recordKey(key));
        return known;
      },
      entries: () =>
        this.read(() => [...records.getRange(rangeOf(kind))]).map(({ key: bytes, value }) => {
          const key = bytes.toString("utf8", 1);
          return [key, readRecord(schema, `${name} ${key}`, value)];
        }),
    };
  }

  /** Frees what this process holds; what is written stays. */
  close(): Promise<void> {
    return this.environment.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
