/**
 * `npm run bench:gpu`: each transfer between two ranks on one GPU beside the driver's own copy of the same bytes, device to
 * device, in the same run. A cast's floor is the time that its bytes, read and written, take at the speed of that copy.
 */
import { createExecutor } from "../../src/exec/executor.ts";
import { cudaInfo, cudaTimeCopies, parseUuid } from "../../src/ffi/cuda.ts";
import { DeviceMesh, type DType, itemSize, Replicate } from "../../src/layout/index.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { findMachine, type Machine, writeResults } from "../../test/gpu/machine.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";

interface BenchCase {
  readonly name: string;
  readonly dtype: DType;
  readonly targetDtype?: DType;
  /** Bytes of a row at the source, and of the gap behind it. */
  readonly row: number;
  readonly gap: number;
  /** What is to be reached, of the floor. */
  readonly goal: number;
}

const cases: readonly BenchCase[] = [
  { name: "cuda-ipc/contiguous", dtype: "bfloat16", row: 0, gap: 0, goal: 0.95 },
  { name: "cuda-ipc/rows-4KiB", dtype: "bfloat16", row: 4096, gap: 4096, goal: 0.85 },
  { name: "cuda-ipc/rows-64KiB", dtype: "bfloat16", row: 65_536, gap: 4096, goal: 0.85 },
  { name: "cuda-ipc/rows-256B", dtype: "bfloat16", row: 256, gap: 256, goal: 0 },
  {
    name: "cuda-ipc/float32-to-bfloat16",
    dtype: "float32",
    targetDtype: "bfloat16",
    row: 0,
    gap: 0,
    goal: 0.8,
  },
  {
    name: "cuda-ipc/bfloat16-to-float32",
    dtype: "bfloat16",
    targetDtype: "float32",
    row: 0,
    gap: 0,
    goal: 0.8,
  },
  {
    name: "cuda-ipc/float32-to-e4m3fn-rows-4KiB",
    dtype: "float32",
    targetDtype: "float8_e4m3fn",
    row: 4096,
    gap: 4096,
    goal: 0.8,
  },
];
const rounds = 20;
const machine = findMachine("bench");
const results = [];
for (const one of cases.filter(({ name }) => name.includes(machine.filter))) {
  const result = await measure(machine, one);
  results.push(result);
  console.log(
    `${result.name.padEnd(40)} ${result.gigabytesPerSecond.toFixed(1)} GB/s moved, ${result.ofFloor.toFixed(3)} of its floor` +
      (one.goal > 0 ? ` (goal ${one.goal})` : ""),
  );
}
writeResults(machine, { results });

function sizeOf({ device, double }: Machine): number {
  if (double) return 4 << 20;
  const { free } = cudaInfo(parseUuid(device));
  return Math.min(2 ** 30, 2 ** Math.floor(Math.log2(Number(free) / 8)));
}

async function measure(of: Machine, one: BenchCase) {
  const { device } = of;
  const item = itemSize(one.dtype);
  const payload = sizeOf(of);
  const elements = payload / item;
  const columns = one.row === 0 ? elements : one.row / item;
  const shape = [elements / columns, columns];
  const stride = one.row === 0 ? columns : (one.row + one.gap) / item;
  const source = DeviceMemory.allocate(device, shape[0]! * stride * item);
  const target = DeviceMemory.allocate(device, elements * itemSize(one.targetDtype ?? one.dtype));
  const seconds = await runRounds(device, { one, shape, stride, source, target });
  const copy = copySeconds(device, payload);
  const moved = payload + Number(target.bytes);
  source.close();
  target.close();
  // The copy reads and writes its bytes: its speed counts both.
  const floor = (moved / (2 * payload)) * copy;
  return {
    name: one.name,
    payloadBytes: payload,
    rounds,
    medianSeconds: seconds,
    gigabytesPerSecond: moved / 2 / seconds / 1e9,
    copySeconds: copy,
    ofFloor: floor / seconds,
    goal: one.goal,
  };
}

interface Transfer {
  readonly one: BenchCase;
  readonly shape: readonly number[];
  readonly stride: number;
  readonly source: DeviceMemory;
  readonly target: DeviceMemory;
}

/** The median time of a round, as the target's session says it. */
async function runRounds(device: string, { one, shape, stride, source, target }: Transfer): Promise<number> {
  const stores = memoryStores();
  const only = (rank: number) => ({
    mesh: new DeviceMesh([1], { ranks: [rank] }),
    placements: [Replicate()],
  });
  const { dtype, targetDtype = dtype } = one;
  const plan = await planTransfer({
    pairs: { only: { source: only(0), target: only(1) } },
    tensors: [{ name: "tensor", pair: "only", shape: [...shape], dtype, targetDtype }],
  });
  const sessions = await Promise.all(
    [0, 1].map((rank) => cudaIpc({ device }).open({ rank, world: 2, store: stores() })),
  );
  const tensors = [
    { source: { memory: source, offset: 0n }, strides: { source: [stride, 1] } },
    { target: { memory: target, offset: 0n } },
  ];
  const executions = await Promise.all(
    sessions.map((session, rank) => {
      session.register(rank === 0 ? source : target);
      return createExecutor(session).prepare(plan, {
        key: one.name,
        tensors: new Map([[0, tensors[rank]!]]),
      });
    }),
  );
  const times: number[] = [];
  for (let round = 0; round < rounds + 3; round++) {
    const reports = await Promise.all(executions.map((execution) => execution.run()));
    if (round >= 3) times.push(reports[1]!.seconds);
  }
  for (const session of sessions) await session.close();
  return median(times);
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
