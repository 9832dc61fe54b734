/** NCCL on one GPU: what `npm run test:gpu` asks of it, and `nccl.test.ts` of the doubles. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { createExecutor } from "../../src/exec/executor.ts";
import { findNccl } from "../../src/ffi/nccl.ts";
import { DeviceMesh, Partial, type Placement, Shard } from "../../src/layout/index.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { type GpuCase, root, Skip } from "./machine.ts";
import { betweenRanks, sharedNccl } from "./ranks.ts";

export function ncclCases(device: string): GpuCase[] {
  const program = async (what: string) => runProgram(what);
  return [
    { name: "NCCL: one rank sends to itself", run: () => program("alone") },
    {
      name: "NCCL: a peer that never comes stays in progress, and is aborted",
      run: () => program("missing"),
    },
    { name: "NCCL: two processes on one GPU, where it allows that", run: () => program("shared") },
    {
      name: "nccl: two ranks on one GPU turn rows into columns, and sum",
      run: () => runTransport(device),
    },
  ];
}

/** Plain C, through the declarations of native/src: `test/gpu/nccl.c`. */
function runProgram(what: string): void {
  const native = join(root, "native");
  const program = join(root, "build/gpu/nccl");
  mkdirSync(dirname(program), { recursive: true });
  const sources = [
    "carriers/nccl/nccl_api.c",
    "cuda/cuda_api.c",
    "base/dynamic_library.c",
    "base/error.c",
  ].map((file) => join(native, "src", file));
  const flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", `-I${native}/include`, `-I${native}/src`];
  const files = [join(root, "test/gpu/nccl.c"), ...sources];
  try {
    execFileSync("cc", [...flags, ...files, "-o", program, "-ldl", "-pthread"], { stdio: "pipe" });
  } catch (error) {
    throw new Skip(`the C compiler did not build it: ${(error as Error).message}`);
  }
  const { status, stderr } = spawnSync(program, [what], {
    encoding: "utf8",
    timeout: 180_000,
    env: { ...process.env, TENSOR_BUS_LIBNCCL: findNccl() },
  });
  if (status === 3) throw new Skip(stderr.trim());
  if (status !== 0) throw new Error(stderr.trim() || `it ended with ${status}`);
}

const [rows, columns] = [768, 640];

/** Rows of a matrix, one half on each rank, become columns, and two contributions to it become their sum. */
function runTransport(device: string): Promise<void> {
  return betweenRanks(sharedNccl(device), async (sessions) => {
    await moveMatrix(device, sessions, Shard(0));
    await moveMatrix(device, sessions, Partial("sum"));
  });
}

async function moveMatrix(
  device: string,
  sessions: readonly TransportSession[],
  placement: Placement,
): Promise<void> {
  const mesh = new DeviceMesh([2]);
  const plan = await planTransfer({
    pairs: { all: { source: { mesh, placements: [placement] }, target: { mesh, placements: [Shard(1)] } } },
    tensors: [{ name: "matrix", pair: "all", shape: [rows, columns], dtype: "float32" }],
    bucketBytes: 65_536,
  });
  const sums = placement.kind === "partial";
  const held = sums ? rows : rows / 2;
  const valueAt = (rank: number, row: number, column: number) => row * columns + column + (sums ? rank : 0);
  const ranks = await Promise.all(
    sessions.map(async (session, rank) => {
      const first = sums ? 0 : rank * held;
      const values = Float32Array.from({ length: held * columns }, (_, index) =>
        valueAt(rank, first + Math.floor(index / columns), index % columns),
      );
      const source = DeviceMemory.allocate(device, values.byteLength);
      const target = DeviceMemory.allocate(device, (rows * columns * 4) / 2);
      source.write(new Uint8Array(values.buffer));
      for (const memory of [source, target]) session.register(memory);
      const place = (memory: DeviceMemory) => ({ memory, offset: 0n });
      const tensors = new Map([[0, { source: place(source), target: place(target) }]]);
      const execution = await createExecutor(session).prepare(plan, { key: placement.kind, tensors });
      return { execution, source, target };
    }),
  );
  for (let round = 0; round < 3; round++) await Promise.all(ranks.map(({ execution }) => execution.run()));
  for (const [rank, { execution, source, target }] of ranks.entries()) {
    const bytes = new Uint8Array(Number(target.bytes));
    target.read(bytes);
    for (const [index, value] of new Float32Array(bytes.buffer).entries()) {
      const [row, column] = [
        Math.floor(index / (columns / 2)),
        (index % (columns / 2)) + (rank * columns) / 2,
      ];
      const must = sums ? valueAt(0, row, column) + valueAt(1, row, column) : valueAt(0, row, column);
      if (value !== must) throw new Error(`[${row}, ${column}] is ${value}, not ${must}`);
    }
    await execution.release();
    for (const memory of [source, target]) {
      sessions[rank]!.unregister(memory);
      memory.close();
    }
  }
}
