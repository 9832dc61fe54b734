import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  DeviceMesh,
  type DType,
  type Layout,
  parsePlacement,
  type StridedShardReading,
} from "../../../src/layout/index.ts";

/** What real PyTorch gave a rank: the ids of its elements, row-major. */
export interface GoldenLocal {
  readonly local_shape: readonly number[];
  readonly n_runs: number;
  readonly sha256: string;
  /** Runs of ids; left out if there are more than 160. */
  readonly ids?: readonly (readonly [start: number, count: number])[];
}

export interface GoldenSide {
  readonly mesh_shape: readonly number[];
  readonly ranks: readonly number[];
  readonly placements: readonly string[];
  readonly shard_order_reading?: "same" | "differs" | "undecodable";
  readonly locals: Readonly<Record<string, GoldenLocal>>;
}

interface GoldenLayout extends GoldenSide {
  readonly kind: "layout";
  readonly id: string;
  readonly shape: readonly number[];
}

export interface GoldenPair {
  readonly kind: "pair";
  readonly id: string;
  readonly relation: "disjoint" | "colocated" | "overlap";
  readonly shape: readonly number[];
  readonly dtype_src: DType;
  readonly dtype_dst: DType;
  readonly source: GoldenSide & { readonly rank_offset: number };
  readonly target: GoldenSide & { readonly rank_offset: number };
}

interface GoldenReject {
  readonly kind: "reject";
  readonly id: string;
  readonly tag: string;
  readonly mesh_shape: readonly number[];
  readonly ranks: readonly number[];
  readonly placements: readonly string[];
  readonly shape: readonly number[];
}

interface GoldenFsdp2 extends GoldenSide {
  readonly kind: "fsdp2";
  readonly id: string;
  readonly shape: readonly number[];
  readonly locals_fsdp2: Readonly<Record<string, GoldenLocal>>;
}

function read<T>(file: string): T[] {
  const text = readFileSync(join(import.meta.dirname, "../../golden", file), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as T);
}

export const dtensorCases = read<GoldenLayout | GoldenPair | GoldenReject>("dtensor.jsonl");
export const fsdp2Cases = read<GoldenFsdp2>("fsdp2.jsonl");

export function goldenLayout(
  side: Pick<GoldenSide, "mesh_shape" | "ranks" | "placements">,
  stridedShard?: StridedShardReading,
): Layout {
  const mesh = new DeviceMesh(side.mesh_shape, { ranks: side.ranks });
  const placements = side.placements.map(parsePlacement);
  return stridedShard === undefined ? { mesh, placements } : { mesh, placements, stridedShard };
}

/** Ids in the form of the golden files. */
export function describeIds(localShape: readonly number[], ids: readonly number[]): GoldenLocal {
  const bytes = new DataView(new ArrayBuffer(ids.length * 8));
  const runs: [number, number][] = [];
  ids.forEach((id, at) => {
    bytes.setBigInt64(at * 8, BigInt(id), true);
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === id) last[1]++;
    else runs.push([id, 1]);
  });
  const sha256 = createHash("sha256").update(new Uint8Array(bytes.buffer)).digest("hex");
  const short = { local_shape: localShape, n_runs: runs.length, sha256 };
  return runs.length <= 160 ? { ...short, ids: runs } : short;
}
