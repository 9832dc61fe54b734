/** Measures one case: its rounds, and the driver's copy of the same bytes right after them. */
import { createExecutor } from "../../src/exec/executor.ts";
import { cudaInfo, cudaTimeCopies, parseUuid } from "../../src/ffi/cuda.ts";
import { DeviceMesh, itemSize, Replicate } from "../../src/layout/index.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import type { RoundReport } from "../../src/transport/transport.ts";
import type { Machine } from "../../test/gpu/machine.ts";
import { betweenRanks } from "../../test/gpu/ranks.ts";
import type { BenchCase } from "./cases.ts";

export interface Figures {
  readonly payloadBytes: number;
  readonly rounds: number;
  readonly medianSeconds: number;
  readonly gigabytesPerSecond: number;
  readonly copySeconds: number;
  readonly ofFloor: number;
  /** Of both ranks: 0 if every byte went from where it lay to where it belongs. */
  readonly stagingBytes: number;
  readonly goal: number;
}

const rounds = 20;
const warmups = 3;

export async function measure(machine: Machine, one: BenchCase): Promise<Figures> {
  const { device } = machine;
  const item = itemSize(one.dtype);
  const payload = payloadOf(machine);
  const elements = payload / item;
  const columns = one.row === 0 ? elements : one.row / item;
  const shape = [elements / columns, columns];
  const stride = one.row === 0 ? columns : (one.row + one.gap) / item;
  const memories = [
    DeviceMemory.allocate(device, shape[0]! * stride * item),
    DeviceMemory.allocate(device, elements * itemSize(one.targetDtype ?? one.dtype)),
  ] as const;
  const moved = payload + Number(memories[1].bytes);
  try {
    const reports = await runRounds(device, one, { shape, stride, memories });
    // As the target says it.
    const seconds = median(reports.map(([, target]) => target!.seconds));
    const copy = copySeconds(device, payload);
    // The copy reads and writes its bytes: its speed counts both.
    const floor = (moved / (2 * payload)) * copy;
    return {
      payloadBytes: payload,
      rounds,
      medianSeconds: seconds,
      gigabytesPerSecond: moved / 2 / seconds / 1e9,
      copySeconds: copy,
      ofFloor: floor / seconds,
      stagingBytes: reports[0]!.reduce((sum, { stagingHighWater }) => sum + Number(stagingHighWater), 0),
      goal: one.goal,
    };
  } finally {
    for (const memory of memories) memory.close();
  }
}

function payloadOf({ device, double }: Machine): number {
  if (double) return 4 << 20;
  const { free } = cudaInfo(parseUuid(device));
  return Math.min(2 ** 30, 2 ** Math.floor(Math.log2(Number(free) / 8)));
}

interface Tensor {
  readonly shape: readonly number[];
  /** Elements from one row of the source to the next. */
  readonly stride: number;
  /** The source's and the target's. */
  readonly memories: readonly DeviceMemory[];
}

/** What both ranks say of each round. */
async function runRounds(
  device: string,
  one: BenchCase,
  { shape, stride, memories }: Tensor,
): Promise<RoundReport[][]> {
  const only = (rank: number) => ({
    mesh: new DeviceMesh([1], { ranks: [rank] }),
    placements: [Replicate()],
  });
  const { dtype, targetDtype = dtype } = one;
  const plan = await planTransfer({
    pairs: { only: { source: only(0), target: only(1) } },
    tensors: [{ name: "tensor", pair: "only", shape: [...shape], dtype, targetDtype }],
  });
  const [source, target] = memories.map((memory) => ({ memory, offset: 0n }));
  const tensors = [{ source: source!, strides: { source: [stride, 1] } }, { target: target! }];
  return betweenRanks(one.transport(device), async (sessions) => {
    const executions = await Promise.all(
      sessions.map((session, rank) => {
        session.register(memories[rank]!);
        return createExecutor(session).prepare(plan, {
          key: one.name,
          tensors: new Map([[0, tensors[rank]!]]),
        });
      }),
    );
    const reports: RoundReport[][] = [];
    for (let round = 0; round < warmups + rounds; round++) {
      reports.push(await Promise.all(executions.map((execution) => execution.run())));
    }
    return reports.slice(warmups);
  });
}

function copySeconds(device: string, bytes: number): number {
  const [from, to] = [0, 1].map(() => DeviceMemory.allocate(device, bytes)) as [DeviceMemory, DeviceMemory];
  const ask = { to: to.address, from: from.address, bytes: BigInt(bytes), times: 10 };
  const times = Array.from({ length: 8 }, () => cudaTimeCopies(parseUuid(device), ask) / 10).slice(1);
  from.close();
  to.close();
  return median(times);
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}
