/** The cases of `npm run bench:gpu`: their names are fixed, results of years can be compared. */
import type { DType } from "../../src/layout/index.ts";
import type { Transport } from "../../src/transport/transport.ts";
import { sharedNccl } from "../../test/gpu/ranks.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";

export interface BenchCase {
  readonly name: string;
  readonly transport: (device: string) => Transport;
  readonly dtype: DType;
  readonly targetDtype?: DType;
  /** Bytes of a row at the source, and of the gap behind it; 0 for one row of everything. */
  readonly row: number;
  readonly gap: number;
  /** What is to be reached, of the floor; 0 if nobody has said. */
  readonly goal: number;
}

const contiguous = { row: 0, gap: 0 } as const;
const rows4KiB = { row: 4096, gap: 4096 } as const;
const ipc = (device: string) => cudaIpc({ device });

export const cases: readonly BenchCase[] = [
  { name: "cuda-ipc/contiguous", transport: ipc, dtype: "bfloat16", ...contiguous, goal: 0.95 },
  { name: "cuda-ipc/rows-4KiB", transport: ipc, dtype: "bfloat16", ...rows4KiB, goal: 0.85 },
  { name: "cuda-ipc/rows-64KiB", transport: ipc, dtype: "bfloat16", row: 65_536, gap: 4096, goal: 0.85 },
  { name: "cuda-ipc/rows-256B", transport: ipc, dtype: "bfloat16", row: 256, gap: 256, goal: 0 },
  {
    name: "cuda-ipc/float32-to-bfloat16",
    transport: ipc,
    dtype: "float32",
    targetDtype: "bfloat16",
    ...contiguous,
    goal: 0.8,
  },
  {
    name: "cuda-ipc/bfloat16-to-float32",
    transport: ipc,
    dtype: "bfloat16",
    targetDtype: "float32",
    ...contiguous,
    goal: 0.8,
  },
  {
    name: "cuda-ipc/float32-to-e4m3fn-rows-4KiB",
    transport: ipc,
    dtype: "float32",
    targetDtype: "float8_e4m3fn",
    ...rows4KiB,
    goal: 0.8,
  },
  { name: "nccl/contiguous", transport: sharedNccl, dtype: "bfloat16", ...contiguous, goal: 0 },
  { name: "nccl/rows-4KiB", transport: sharedNccl, dtype: "bfloat16", ...rows4KiB, goal: 0 },
  {
    name: "nccl/float32-to-bfloat16",
    transport: sharedNccl,
    dtype: "float32",
    targetDtype: "bfloat16",
    ...contiguous,
    goal: 0,
  },
];
