import { expect } from "vitest";
import { TensorBusError } from "../../../src/errors.ts";
import { type Plan, planTransfer } from "../../../src/plan/index.ts";
import type { Bucket, Chunk, PlanInput } from "../../../src/plan/input/types.ts";
import { verifyChunks } from "../../../src/plan/verify/verify.ts";
import { Random } from "../../kit/random.ts";
import { MisfitSizes, UnreadableShard } from "./naive-holdings.ts";
import {
  type NaiveTensor,
  type NaiveTotals,
  naiveCrossings,
  naiveTensors,
  naiveTotals,
} from "./naive-planner.ts";
import { simulate } from "./simulator.ts";

/** Both planners agree whether the input has a meaning; `undefined` if it has none. */
async function planBoth(
  input: PlanInput,
): Promise<{ readonly plan: Plan; readonly tensors: readonly NaiveTensor[] } | undefined> {
  let tensors: readonly NaiveTensor[] | undefined;
  try {
    tensors = naiveTensors(input);
  } catch (error) {
    if (!(error instanceof UnreadableShard || error instanceof MisfitSizes)) throw error;
  }
  try {
    const plan = await planTransfer(input);
    if (tensors === undefined) throw new Error("planned shards that have no one meaning");
    return { plan, tensors };
  } catch (error) {
    if (!(error instanceof TensorBusError) || tensors !== undefined) throw error;
    expect(["TB_STRIDED_SHARD", "TB_PLACEMENT"]).toContain(error.code);
    return undefined;
  }
}

function movedElements(chunks: readonly Chunk[]): NaiveTotals {
  const totals = { copy: 0n, send: 0n, reduce: 0n };
  for (const { kind, lengths } of chunks) totals[kind] += lengths.reduce((a, b) => a * b, 1n);
  return totals;
}

/** (stage, wave, source, destination, sequence, index) of a chunk, or of a bucket without the index. */
function orderKey(item: Chunk | Bucket): number[] {
  const [stage, ...rest] = item.id.split(":").map(Number);
  return [stage!, item.wave, ...rest];
}

function expectAscending(items: readonly (Chunk | Bucket)[]): void {
  const keys = items.map(orderKey);
  keys.forEach((key, at) => {
    if (at === 0) return;
    const before = keys[at - 1]!;
    const place = key.findIndex((value, index) => value !== before[index]);
    expect(place >= 0 && key[place]! > before[place]!, `${before} before ${key}`).toBe(true);
  });
}

/** Few enough waves a stage, few enough channels of a wave at a receiver, and no stage among another's waves. */
export function checkWaves(buckets: readonly Bucket[], peersInFlight: number): void {
  let before = 0;
  for (const stage of [0, 1, 2]) {
    const channels = new Map(
      buckets.filter((b) => b.stage === stage).map((b) => [`${b.srcRank}>${b.dstRank}`, b]),
    );
    const arrivals = new Map<string, number>();
    const degrees = new Map<string, number>();
    const count = (map: Map<string, number>, key: string): void => void map.set(key, (map.get(key) ?? 0) + 1);
    let last = before - 1;
    for (const { srcRank, dstRank, wave } of channels.values()) {
      count(arrivals, `${wave}:${dstRank}`);
      count(degrees, `out ${srcRank}`);
      count(degrees, `in ${dstRank}`);
      expect(wave).toBeGreaterThanOrEqual(before);
      last = Math.max(last, wave);
    }
    expect(Math.max(0, ...arrivals.values())).toBeLessThanOrEqual(peersInFlight);
    const bound = 2 * Math.ceil(Math.max(0, ...degrees.values()) / peersInFlight);
    expect(last + 1 - before).toBeLessThanOrEqual(bound);
    before = last + 1;
  }
}

function checkByRank(
  plan: Plan,
  chunks: readonly Chunk[],
  buckets: readonly Bucket[],
  ranks: number[],
): void {
  for (const rank of ranks) {
    const touches = (item: Chunk | Bucket): boolean => item.srcRank === rank || item.dstRank === rank;
    expect([...plan.chunks({ rank })]).toEqual(chunks.filter(touches));
    expect([...plan.buckets({ rank })]).toEqual(buckets.filter(touches));
  }
}

/** Every rank of either side, and one that is on none. */
function ranksOf(input: PlanInput): number[] {
  const sides = Object.values(input.pairs).flatMap(({ source, target }) => [source, target]);
  const ranks = new Set(sides.flatMap(({ mesh }) => [...mesh.ranks]));
  return [...ranks, Math.max(...ranks) + 1];
}

/** Every element enters a group of replicas once, unless a member has it. */
function checkCrossings(
  input: PlanInput,
  plan: Plan,
  tensors: readonly NaiveTensor[],
  chunks: readonly Chunk[],
): Set<string> {
  const seen = new Set<string>();
  const patterns = plan.stats().patterns.map(({ groups }) => groups);
  for (const [index, tensor] of tensors.entries()) {
    const groups = patterns[plan.patternOf(index)]!;
    seen.add(groups);
    if (tensor.source.op !== undefined) continue;
    const moved = chunks.filter(
      (chunk) => chunk.tensor === index && chunk.stage === 1 && chunk.kind === "send",
    );
    expect(movedElements(moved).send).toBe(naiveCrossings(input, tensor, groups));
  }
  return seen;
}

/** So are those of channels, and of hosts. */
function checkChannels(plan: Plan, chunks: readonly Chunk[], buckets: readonly Bucket[]): void {
  const nameOf = ({ stage, srcRank, dstRank }: Pick<Chunk, "stage" | "srcRank" | "dstRank">) =>
    `${stage} ${srcRank} ${dstRank}`;
  const sums = new Map(
    buckets.map((bucket) => [
      nameOf(bucket),
      { chunks: 0, buckets: 0, bytes: 0n, wire: 0n, wave: bucket.wave },
    ]),
  );
  for (const bucket of buckets) {
    const sum = sums.get(nameOf(bucket))!;
    sum.buckets++;
    sum.wire += bucket.bytes;
  }
  for (const chunk of chunks) {
    const sum = sums.get(nameOf(chunk))!;
    sum.chunks++;
    sum.bytes += chunk.bytes;
  }
  const links = [...plan.links()];
  const found = links.map(
    (link) => `${nameOf(link)}: ${link.chunks} ${link.buckets} ${link.bytes} ${link.wireBytes} ${link.wave}`,
  );
  const expected = Array.from(sums, ([name, sum]) => `${name}: ${Object.values(sum).join(" ")}`);
  expect(found.toSorted()).toEqual(expected.toSorted());
  const keys = links.map(({ stage, srcRank, dstRank }) => (stage * 2 ** 20 + srcRank) * 2 ** 20 + dstRank);
  expect(keys).toEqual(keys.toSorted((a, b) => a - b));
  const between = links.filter(({ srcRank, dstRank }) => srcRank !== dstRank);
  const total = between.reduce((sum, { bytes }) => sum + bytes, 0n);
  const atHosts = plan.stats().hosts.reduce((sum, { bytes }) => sum + bytes, 0n);
  expect(atHosts).toBe(plan.input.topology === undefined ? 0n : total);
}

/** Statistics are those of the chunks and buckets. */
function checkStats(plan: Plan, chunks: readonly Chunk[], buckets: readonly Bucket[]): void {
  const stats = plan.stats();
  for (const { stage, ...found } of stats.stages) {
    const ofStage = chunks.filter((chunk) => chunk.stage === stage);
    const own = buckets.filter((bucket) => bucket.stage === stage);
    const waves = new Set(own.map(({ wave }) => wave));
    expect(found).toEqual({
      chunks: ofStage.length,
      buckets: own.length,
      bytes: ofStage.reduce((sum, { bytes }) => sum + bytes, 0n),
      waves: waves.size,
    });
  }
  for (const { rank, sent, received, stagingBytes } of stats.ranks) {
    const sum = (end: "srcRank" | "dstRank") =>
      chunks.reduce(
        (sum, one) =>
          one.kind !== "copy" && one.srcRank !== one.dstRank && one[end] === rank ? sum + one.bytes : sum,
        0n,
      );
    expect([sent, received]).toEqual([sum("srcRank"), sum("dstRank")]);
    expect(stagingBytes).toBe(plan.program(rank).stagingBytes);
  }
}

interface Checked {
  readonly plan: Plan;
  readonly tensors: readonly NaiveTensor[];
  readonly chunks: readonly Chunk[];
  readonly buckets: readonly Bucket[];
}

/** Holds what a plan moves against the naive planner and the simulator; `undefined` if the input has no meaning. */
export async function checkMoves(input: PlanInput): Promise<Checked | undefined> {
  const both = await planBoth(input);
  if (both === undefined) return undefined;
  const { plan, tensors } = both;
  const chunks = [...plan.chunks()];
  const buckets = [...plan.buckets()];
  verifyChunks(input, chunks, buckets);
  simulate(input, chunks, buckets, { tensors });
  expect(movedElements(chunks)).toEqual(naiveTotals(tensors));
  return { plan, tensors, chunks, buckets };
}

/**
 * Holds the plan of an input against the naive planner, the simulator and itself; false if the input has no meaning.
 * `groupings` counts the plans that had a pattern of each grouping.
 */
export async function checkAll(
  input: PlanInput,
  seed: number,
  groupings = new Map<string, number>(),
): Promise<boolean> {
  const checked = await checkMoves(input);
  if (checked === undefined) return false;
  const { plan, tensors, chunks, buckets } = checked;
  simulate(input, chunks, buckets, { tensors, random: new Random(seed) });
  expectAscending(chunks);
  expectAscending(buckets);
  checkWaves(buckets, input.peersInFlight ?? 4);
  for (const groups of checkCrossings(input, plan, tensors, chunks))
    groupings.set(groups, (groupings.get(groups) ?? 0) + 1);
  if (seed % 4 === 0) checkStats(plan, chunks, buckets);
  checkChannels(plan, chunks, buckets);
  checkByRank(plan, chunks, buckets, ranksOf(input));
  return true;
}
