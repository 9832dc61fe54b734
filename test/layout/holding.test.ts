import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  DeviceMesh,
  type Holding,
  holdingOf,
  type Layout,
  parsePlacement,
  type StridedShardReading,
} from "../../src/layout/index.ts";

interface GoldenSide {
  readonly mesh_shape: number[];
  readonly ranks: number[];
  readonly placements: string[];
  readonly locals: Record<string, { local_shape: number[]; sha256: string }>;
}

function lines(name: string): Record<string, unknown>[] {
  const text = readFileSync(join(import.meta.dirname, "..", "golden", name), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** SHA-256 of the global ids of a local tensor, as the goldens hold it: row-major, 64-bit little-endian. */
function idsHash(holding: Holding, shape: readonly number[]): string {
  let ids: number[] = [0];
  holding.runs.forEach((runs, dim) => {
    const indices = runs.flatMap((run) => Array.from({ length: run.length }, (_, i) => run.start + i));
    ids = ids.flatMap((id) => indices.map((index) => id * shape[dim]! + index));
  });
  return createHash("sha256")
    .update(BigInt64Array.from(ids, BigInt) as unknown as Uint8Array)
    .digest("hex");
}

function expectHoldings(
  side: GoldenSide,
  shape: number[],
  locals: GoldenSide["locals"],
  reading: StridedShardReading,
): void {
  const layout: Layout = {
    mesh: new DeviceMesh(side.mesh_shape, { ranks: side.ranks }),
    placements: side.placements.map(parsePlacement),
  };
  for (const [rank, local] of Object.entries(locals)) {
    const holding = holdingOf(layout, shape, Number(rank), { stridedShard: reading });
    if (holding === undefined) {
      expect(side.ranks).not.toContain(Number(rank));
      continue;
    }
    expect(holding.localShape).toEqual(local.local_shape);
    expect(idsHash(holding, shape)).toBe(local.sha256);
  }
}

describe("holdings of real DTensors", () => {
  for (const entry of lines("dtensor.jsonl")) {
    if (entry["kind"] === "reject") continue;
    it(`${entry["id"]}`, () => {
      const sides = entry["kind"] === "layout" ? [entry] : [entry["source"], entry["target"]];
      for (const side of sides as GoldenSide[]) {
        expectHoldings(side, entry["shape"] as number[], side.locals, "split");
      }
    });
  }
});

describe("holdings of real FSDP2 parameters", () => {
  for (const entry of lines("fsdp2.jsonl")) {
    it(`${entry["id"]}`, () => {
      const side = entry as unknown as GoldenSide & { locals_fsdp2: GoldenSide["locals"] };
      expectHoldings(side, entry["shape"] as number[], side.locals_fsdp2, "order");
      expectHoldings(side, entry["shape"] as number[], side.locals, "split");
    });
  }
});
