/** The transfer benchmark's cases: their names are fixed, results of years can be compared. */
import { DeviceMesh, Partial, Replicate, Shard } from "../../src/layout/index.ts";
import type { PlanInput } from "../../src/plan/types.ts";

export const matrix = { rows: 4096, columns: 1024, bytes: 4096 * 1024 * 4 } as const;

export interface TransferCase {
  readonly name: string;
  readonly pair: PlanInput["pairs"][string];
}

/** Cases that share ranks, memory and the program that is their ceiling; their rounds alternate. */
export interface TransferGroup {
  readonly sources: number;
  readonly targets: number;
  readonly cases: readonly TransferCase[];
  /** The ceiling: a program of `bench/native`, and its arguments. Case i is its mode i. */
  readonly ceiling: {
    readonly program: string;
    readonly args: (tensors: number) => readonly (string | number)[];
  };
}

const { rows, columns } = matrix;

/** Rows cut among the sources to columns cut among the targets. */
function exchange(name: string, sources: number, targets: number): TransferGroup {
  const sourceMesh = new DeviceMesh([sources]);
  const targetMesh = new DeviceMesh([targets], { ranks: ranksFrom(sources, targets) });
  return {
    sources,
    targets,
    cases: [
      {
        name,
        pair: {
          source: { mesh: sourceMesh, placements: [Shard(0)] },
          target: { mesh: targetMesh, placements: [Shard(1)] },
        },
      },
    ],
    ceiling: { program: "raw_exchange", args: (tensors) => [sources, targets, tensors, rows, columns] },
  };
}

const fourByPairs = new DeviceMesh([2, 2]);
const toFour = {
  mesh: new DeviceMesh([4], { ranks: ranksFrom(4, 4) }),
  placements: [Shard(0)],
};

export const groups: readonly TransferGroup[] = [
  exchange("tcp/1to1/contiguous", 1, 1),
  exchange("tcp/2to2/S0-S1", 2, 2),
  exchange("tcp/4to4/S0-S1", 4, 4),
  {
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
    ceiling: { program: "raw_reduce", args: (tensors) => [tensors, rows, columns] },
  },
];

function ranksFrom(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}
