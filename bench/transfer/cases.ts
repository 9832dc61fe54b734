/** The cases of the benchmarks of transports: their names are fixed, results of years can be compared. */
import { DeviceMesh, Partial, Replicate, Shard } from "../../src/layout/index.ts";
import type { PlanInput } from "../../src/plan/input/types.ts";

export const matrix = { rows: 4096, columns: 1024, bytes: 4096 * 1024 * 4 } as const;

export type BenchTransport = "tcp" | "shm" | "ucx";
export type BenchMemory = "host" | "shared";

export interface TransferCase {
  readonly name: string;
  readonly pair: PlanInput["pairs"][string];
  /** What float32 becomes; itself unless given. */
  readonly targetDtype?: "bfloat16";
  /** What the tensors lie in; default: the transport's own kind, `host` for tcp and `shared` for shm. */
  readonly memory?: BenchMemory;
}

/** Cases that share ranks, memory and the program that is their ceiling; their rounds alternate. */
export interface TransferGroup {
  readonly transport: BenchTransport;
  readonly sources: number;
  readonly targets: number;
  readonly cases: readonly TransferCase[];
  /** The ceiling: a program of `bench/native` and its arguments, whose mode i is case i, or `ucx_perftest`, of UCX itself. */
  readonly ceiling: {
    readonly program: string;
    /** Bytes of a call, of which the best is taken for each case. */
    readonly callSizes: readonly number[];
    readonly args: (tensors: number) => readonly (string | number)[];
  };
}

const { rows, columns } = matrix;

/** Over which of its own transports UCX moves, here and in the ceilings: `UCX_TLS`. */
export const ucxTransports = "tcp,self";
const ucxCalls = [64 * 1024, 1024 * 1024, 4096 * 1024, 16_384 * 1024];
const socketCalls = [64 * 1024, 256 * 1024, 1024 * 1024, 4096 * 1024];
/** The last one is all at once, which is what libc copies past the cache. */
const copyCalls = [64 * 1024, 1024 * 1024, 2 ** 40];

const ceilings = {
  tcp: { program: "raw_exchange", callSizes: socketCalls },
  shm: { program: "raw_copy", callSizes: copyCalls },
  ucx: { program: "raw_ucx", callSizes: ucxCalls },
} as const;

/** Rows cut among the sources to columns cut among the targets. */
function exchange(
  transport: BenchTransport,
  sources: number,
  targets: number,
  cases: readonly Omit<TransferCase, "pair">[],
): TransferGroup {
  const pair = {
    source: { mesh: new DeviceMesh([sources]), placements: [Shard(0)] },
    target: {
      mesh: new DeviceMesh([targets], { ranks: ranksFrom(sources, targets) }),
      placements: [Shard(1)],
    },
  };
  return {
    transport,
    sources,
    targets,
    cases: cases.map((one) => ({ ...one, pair })),
    ceiling: {
      ...ceilings[transport],
      args: (tensors) => [sources, targets, tensors, rows, columns],
    },
  };
}

const fourByPairs = new DeviceMesh([2, 2]);
const toFour = {
  mesh: new DeviceMesh([4], { ranks: ranksFrom(4, 4) }),
  placements: [Shard(0)],
};

export const groups: readonly TransferGroup[] = [
  exchange("tcp", 1, 1, [{ name: "tcp/1to1/contiguous" }]),
  exchange("tcp", 2, 2, [{ name: "tcp/2to2/S0-S1" }]),
  exchange("tcp", 4, 4, [{ name: "tcp/4to4/S0-S1" }]),
  {
    transport: "tcp",
    sources: 4,
    targets: 4,
    cases: [
      {
        name: "tcp/partial/2x2-R-Psum-to-4-S0",
        pair: { source: { mesh: fourByPairs, placements: [Replicate(), Partial("sum")] }, target: toFour },
      },
      {
        name: "tcp/partial/2x2-R-R-to-4-S0",
        pair: { source: { mesh: fourByPairs, placements: [Replicate(), Replicate()] }, target: toFour },
      },
    ],
    ceiling: {
      program: "raw_reduce",
      callSizes: socketCalls,
      args: (tensors) => [tensors, rows, columns],
    },
  },
  exchange("shm", 1, 1, [
    { name: "shm/1to1/contiguous" },
    { name: "shm/1to1/float32-bfloat16", targetDtype: "bfloat16" },
    { name: "shm/1to1/private", memory: "host" },
  ]),
  exchange("shm", 2, 2, [{ name: "shm/2to2/S0-S1" }, { name: "shm/2to2/S0-S1/private", memory: "host" }]),
  // Over its TCP: in shared memory, UCX 1.13 reads by other means from memory that it has allocated itself than from any other.
  {
    ...exchange("ucx", 1, 1, [{ name: "ucx/1to1/contiguous" }]),
    ceiling: { program: "ucx_perftest", callSizes: ucxCalls, args: () => [] },
  },
  exchange("ucx", 2, 2, [{ name: "ucx/2to2/S0-S1" }]),
];

function ranksFrom(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}
