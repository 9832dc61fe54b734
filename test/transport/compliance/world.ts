/** Sessions of all ranks in one process, and how a case runs on them. */
import { setTimeout as delay } from "node:timers/promises";
import { expect } from "vitest";
import { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import type { PlanInput } from "../../../src/plan/input/types.ts";
import type {
  OpenOptions,
  PrepareOptions,
  RoundReport,
  TransportCapabilities,
  TransportSession,
} from "../../../src/transport/transport.ts";
import type { Random } from "../../kit/random.ts";
import { RankMemory } from "../kit/rank-memory.ts";
import { allocate, kindOf, type TestMemoryKind, testDevices } from "../kit/test-memory.ts";
import type { TransferCase } from "./cases.ts";

/** What the suite needs of an implementation. */
export interface Subject {
  readonly name: string;
  readonly capabilities: TransportCapabilities;
  /** Ranks begin and end the rounds of what it moves all together: none is done with one while another has yet to begin it. */
  readonly joint?: boolean;
  /** Opens the sessions of ranks 0 to `world - 1`, which meet each other and nobody else. */
  open(world: number): Promise<World>;
  /** Opens one session that meets nobody. */
  openOne(options: Membership): Promise<TransportSession>;
}

type Membership = Omit<OpenOptions, "store">;

export interface World extends AsyncDisposable {
  readonly sessions: readonly TransportSession[];
}

/** A case that is prepared on all ranks of a world. */
export interface PreparedCase extends AsyncDisposable {
  readonly memories: readonly RankMemory[];
  readonly executions: readonly Execution[];
  /** Fills the sources, runs one round on all ranks, compares every byte, and answers what each rank did. */
  round(options?: { readonly delays?: Random }): Promise<readonly RoundReport[]>;
}

/** In which kind of memory a rank's tensors lie; default: `kindOf`. */
interface MemoryOfRanks {
  readonly memory?: (rank: number) => TestMemoryKind;
}

let keys = 0;

export async function prepareCase(
  sessions: readonly TransportSession[],
  transfer: TransferCase,
  { memory, ...options }: Partial<PrepareOptions> & MemoryOfRanks = {},
): Promise<PreparedCase> {
  const plan = await planTransfer(transfer.input);
  const memories = sessions.map(
    ({ capabilities }, rank) => new RankMemory(transfer, rank, memory?.(rank) ?? kindOf(capabilities)),
  );
  for (const [rank, session] of sessions.entries()) session.register(memories[rank]!.memory);
  const key = `case ${keys++}`;
  const executions = await Promise.all(
    sessions.map((session, rank) =>
      createExecutor(session).prepare(plan, {
        key,
        ...options,
        ranks: sessions.map((_, each) => each),
        tensors: memories[rank]!.tensors,
      }),
    ),
  );
  let number = 0;
  return {
    memories,
    executions,
    async round({ delays } = {}) {
      const round = ++number;
      for (const memory of memories) memory.fill(round);
      const waits = executions.map(() => delays?.integer(0, 4) ?? 0);
      const reports = await Promise.all(
        executions.map(async (execution, rank) => {
          if (waits[rank]! > 0) await delay(waits[rank]!);
          const report = await execution.run();
          const { stats } = execution;
          expect(report.stagingHighWater).toBeLessThanOrEqual(stats.stagingBytes);
          expect(report.bytesSent).toBe(stats.bytesSent);
          expect(report.bytesReceived).toBe(stats.bytesReceived);
          expect(report.bytesCopied).toBe(stats.bytesCopied);
          return report;
        }),
      );
      for (const memory of memories) memory.check();
      return reports;
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(executions.map((execution) => execution.release()));
      sessions.forEach((session, rank) => {
        session.unregister(memories[rank]!.memory);
        memories[rank]!.close();
      });
    },
  };
}

/** Prepares a case, runs it for some rounds, and frees it. */
export async function runCase(
  sessions: readonly TransportSession[],
  transfer: TransferCase,
  options: Partial<PrepareOptions> &
    MemoryOfRanks & { readonly rounds?: number; readonly delays?: Random } = {},
): Promise<void> {
  const { rounds = 2, delays, ...prepare } = options;
  const prepared = await prepareCase(sessions, transfer, prepare);
  for (let round = 0; round < rounds; round++) await prepared.round(delays === undefined ? {} : { delays });
  await prepared[Symbol.asyncDispose]();
}

/** How a rank's operation ended, as far as all transports agree on it. */
export type Outcome = "done" | { readonly code: string; readonly rank: unknown };

export async function outcomeOf(operation: Promise<unknown>): Promise<Outcome> {
  try {
    await operation;
    return "done";
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    return { code: error.code, rank: error.details["rank"] };
  }
}

export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await delay(1);
}

/** Prepares on each rank for itself a case of one small tensor, and says how that ended there. */
export function prepareEach(
  sessions: readonly TransportSession[],
  options: (rank: number) => PrepareOptions & { readonly input: PlanInput },
): Promise<Outcome[]> {
  return Promise.all(
    sessions.map(async (session, rank) => {
      const { input, ...prepare } = options(rank);
      const plan = await planTransfer(input);
      const { memory } = allocate(kindOf(session.capabilities), 8192, testDevices.of(rank));
      session.register(memory);
      const tensors = new Map([[0, { source: { memory, offset: 0n }, target: { memory, offset: 4096n } }]]);
      return outcomeOf(createExecutor(session).prepare(plan, { ...prepare, tensors }));
    }),
  );
}
