/** Every pair of types and every operator, against the loops of the host and a naive fold. */
import { createExecutor } from "../../src/exec/executor.ts";
import { arithmeticTypes, DeviceMesh, itemSize, partialOps, Replicate } from "../../src/layout/index.ts";
import { DeviceMemory, move } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { Random } from "../kit/random.ts";
import { castTypes, randomCase, sameTypes } from "../transport/compliance/cases.ts";
import { RankMemory } from "../transport/kit/rank-memory.ts";
import type { GpuCase, Machine } from "./machine.ts";

/** Rows and columns of the tensors of a cast; an odd width has lanes of one element, an even one of eight. */
const shapes = [
  [37, 129],
  [64, 1024],
] as const;

export function kernelCases(machine: Machine): GpuCase[] {
  const cast = (from: (typeof arithmeticTypes)[number]): GpuCase => ({
    name: `copies and casts of ${from}, bit for bit as on the host`,
    run: () =>
      within(machine.device, 2, async (sessions) => {
        for (const to of arithmeticTypes)
          for (const shape of shapes) await castOnce(sessions, machine.device, from, to, shape);
      }),
  });
  const reduce = (partial: (typeof partialOps)[number]): GpuCase => ({
    name: `reduces by ${partial}`,
    run: () =>
      runCases(machine, [1, 2, 3], {
        partial,
        ...(partial === "avg" ? { types: sameTypes.slice(0, 3) } : {}),
      }),
  });
  return [
    ...arithmeticTypes.map(cast),
    {
      name: "strided tensors of random layouts",
      run: () => runCases(machine, [10, 11, 12], { strided: true }),
    },
    { name: "casts of random layouts", run: () => runCases(machine, [20, 21], { types: castTypes }) },
    ...partialOps.map(reduce),
  ];
}

async function within(
  device: string,
  world: number,
  body: (sessions: readonly TransportSession[]) => Promise<void>,
): Promise<void> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    sessions.push(await cudaIpc({ device }).open({ rank, world, store: stores() }));
  }
  try {
    await body(sessions);
  } finally {
    for (const session of sessions) await session.close();
  }
}

async function castOnce(
  sessions: readonly TransportSession[],
  device: string,
  from: (typeof arithmeticTypes)[number],
  to: (typeof arithmeticTypes)[number],
  [rows, columns]: readonly [number, number],
): Promise<void> {
  const only = (rank: number) => ({
    mesh: new DeviceMesh([1], { ranks: [rank] }),
    placements: [Replicate()],
  });
  const plan = await planTransfer({
    pairs: { only: { source: only(0), target: only(1) } },
    tensors: [{ name: "cast", pair: "only", shape: [rows, columns], dtype: from, targetDtype: to }],
  });
  const random = new Random(rows + columns);
  const bytes = Uint8Array.from({ length: rows * columns * itemSize(from) }, () => random.integer(0, 255));
  const [expected, got] = [0, 1].map(() => new Uint8Array(rows * columns * itemSize(to))) as [
    Uint8Array,
    Uint8Array,
  ];
  move({ bytes: expected, dtype: to }, { bytes, dtype: from });
  const source = DeviceMemory.allocate(device, bytes.length);
  const target = DeviceMemory.allocate(device, got.length);
  source.write(bytes);
  const places = [{ source: { memory: source, offset: 0n } }, { target: { memory: target, offset: 0n } }];
  const executions = await Promise.all(
    sessions.map((session, rank) => {
      session.register(rank === 0 ? source : target);
      const tensors = new Map([[0, places[rank]!]]);
      return createExecutor(session).prepare(plan, { key: `${from} ${to} ${columns}`, tensors });
    }),
  );
  await Promise.all(executions.map((execution) => execution.run()));
  target.read(got);
  await Promise.all(executions.map((execution) => execution.release()));
  sessions[0]!.unregister(source);
  sessions[1]!.unregister(target);
  source.close();
  target.close();
  const at = got.findIndex((byte, index) => byte !== expected[index]);
  if (at >= 0)
    throw new Error(`${from} to ${to}, ${columns} columns: byte ${at} is ${got[at]}, not ${expected[at]}`);
}

/** Cases of six ranks in this process, compared byte for byte with plain loops. */
async function runCases(
  { device }: Machine,
  seeds: readonly number[],
  options: Parameters<typeof randomCase>[1],
): Promise<void> {
  for (const seed of seeds) {
    const transfer = randomCase(seed, options);
    await within(device, transfer.world, async (sessions) => {
      const plan = await planTransfer(transfer.input);
      const memories = sessions.map((_, rank) => new RankMemory(transfer, rank, "cuda"));
      const executions = await Promise.all(
        sessions.map((session, rank) => {
          session.register(memories[rank]!.memory);
          return createExecutor(session).prepare(plan, { key: "case", tensors: memories[rank]!.tensors });
        }),
      );
      for (const round of [1, 2]) {
        for (const memory of memories) memory.fill(round);
        await Promise.all(executions.map((execution) => execution.run()));
        for (const memory of memories) memory.check();
      }
    });
  }
}
