import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DeviceMesh, itemSize, Partial, Replicate, Shard } from "../../src/layout/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import type { Bucket, Chunk, PlanInput } from "../../src/plan/input/types.ts";
import { Random } from "../kit/random.ts";
import { planInputs } from "./kit/arbitrary.ts";
import { type NaiveTensor, naiveTensors } from "./kit/naive-planner.ts";
import { LocalMemory, wireType } from "./kit/program-memory.ts";
import {
  type Descriptor,
  type ProgramChannel,
  type ProgramEnd,
  type ReadProgram,
  readProgram,
} from "./kit/program-reader.ts";
import { checkProgram } from "./kit/program-rules.ts";
import { runPrograms } from "./kit/program-runner.ts";

/** The fewest loops over the longest runs that visit a box in row-major order. */
function flatten(
  offsets: readonly bigint[],
  lengths: readonly bigint[],
  strides: readonly number[],
  size: number,
): Descriptor {
  const offset = offsets.reduce((at, value, dim) => at + Number(value) * strides[dim]! * size, 0);
  const loops: { count: number; stride: number }[] = [];
  let run = size;
  for (let dim = lengths.length - 1; dim >= 0; dim--) {
    const count = Number(lengths[dim]);
    const stride = strides[dim]! * size;
    const inner = loops[0];
    if (count === 1) continue;
    if (inner === undefined && stride === run) run *= count;
    else if (inner !== undefined && stride === inner.count * inner.stride) inner.count *= count;
    else loops.unshift({ count, stride });
  }
  return { offset, loops, run };
}

function channelKey(rank: number, { stage, direction, peer }: ProgramChannel): string {
  return direction === "receive" ? `${stage}:${peer}:${rank}` : `${stage}:${rank}:${peer}`;
}

interface PlannedRank {
  readonly input: PlanInput;
  readonly program: ReadProgram;
  readonly memory: LocalMemory;
  readonly chunks: readonly Chunk[];
  readonly buckets: readonly Bucket[];
}

/** The program is the rank's chunks and buckets, no more and no less. */
function checkAgainstChunks({ input, program, memory, chunks, buckets }: PlannedRank): void {
  const byBucket = new Map(buckets.map((bucket) => [bucket.id, bucket]));
  const ids: string[] = [];
  for (const channel of program.channels) {
    channel.buckets.forEach((index, sequence) => {
      const id = `${channelKey(program.rank, channel)}:${sequence}`;
      ids[index] = id;
      const planned = byBucket.get(id);
      const { bytes } = program.buckets[index]!;
      expect({ id, wave: channel.wave, bytes: BigInt(bytes) }).toEqual({
        id,
        wave: planned?.wave,
        bytes: planned?.bytes,
      });
    });
  }
  expect(ids.toSorted()).toEqual([...byBucket.keys()].toSorted());
  program.buckets.forEach((bucket, index) => {
    const planned = chunks.filter((chunk) => chunk.bucket === ids[index]);
    expect(planned.length).toBe(bucket.chunks.length);
    const { srcRank, waitsFor } = byBucket.get(ids[index]!)!;
    const awaited = bucket.dependencies.map((other) => ids[other]!).toSorted();
    if (srcRank === program.rank) checkAwaited(program, ids, awaited, waitsFor);
    else expect(awaited).toEqual([]);
    planned.forEach((chunk, at) => {
      const lowered = bucket.chunks[at]!;
      const { dtype, targetDtype = dtype } = input.tensors[chunk.tensor]!;
      const reduce = chunk.kind === "reduce";
      expect(lowered.tensor).toBe(chunk.tensor);
      expect(lowered.elements).toBe(Number(chunk.lengths.reduce((a, b) => a * b, 1n)));
      expect(lowered.reduce).toBe(reduce);
      const types = {
        source: chunk.from === "target" ? targetDtype : dtype,
        wire: { 0: dtype, 1: wireType(dtype, targetDtype), 2: targetDtype }[chunk.stage],
        destination: reduce ? dtype : targetDtype,
      };
      expect(lowered.types).toEqual(types);
      const end = (from: ProgramEnd, kind: Chunk["from"], offsets: readonly bigint[]): void => {
        if (from.kind === "peer") return;
        expect(from.kind).toBe(kind === "reduced" ? "piece" : "buffer");
        if (from.kind !== "buffer" || kind === "reduced") return;
        expect(program.buffers[from.buffer]).toMatchObject({ tensor: chunk.tensor, kind });
        const strides = memory.strides(program.rank, chunk.tensor, kind);
        const size = itemSize(kind === "source" ? dtype : targetDtype);
        expect(from.descriptor).toEqual(flatten(offsets, chunk.lengths, strides, size));
      };
      end(lowered.source, chunk.from, chunk.srcOffsets);
      end(lowered.destination, chunk.to, chunk.dstOffsets);
    });
  });
}

/** A program may name only the last of buckets that are folded one after the other; the plan names all. */
function checkAwaited(
  program: ReadProgram,
  ids: readonly string[],
  awaited: readonly string[],
  waitsFor: readonly string[],
): void {
  const closed = new Set<string>();
  for (const id of awaited) {
    let index: number | undefined = ids.indexOf(id);
    while (index !== undefined) {
      closed.add(ids[index]!);
      index = program.buckets[index]!.foldAfter;
    }
  }
  expect([...closed].toSorted()).toEqual(waitsFor.toSorted());
}

function checkPieces(program: ReadProgram, tensors: readonly NaiveTensor[]): void {
  for (const { tensor, op, divisor, contributions } of program.pieces) {
    const { source } = tensors[tensor]!;
    const { group } = source.byRank.get(program.rank)!;
    expect({ op, divisor, contributions }).toEqual({
      op: source.op,
      divisor: source.divisor,
      contributions: group.length,
    });
  }
}

function checkBuffers({ input, program, memory }: PlannedRank, tensors: readonly NaiveTensor[]): void {
  for (const { tensor, kind, dtype, span, elements } of program.buffers) {
    const { dtype: from, targetDtype = from } = input.tensors[tensor]!;
    expect(dtype).toBe(kind === "source" ? from : targetDtype);
    expect(span).toBe(memory.of(program.rank, tensor, kind).length);
    expect(elements).toBe(tensors[tensor]![kind].byRank.get(program.rank)!.ids.length);
  }
}

/** Plans, lowers, checks and runs all ranks; `tamper` may change the bytes of a program before they are read. */
async function checkPrograms(
  input: PlanInput,
  seed: number,
  tamper: (bytes: Uint8Array, rank: number) => Uint8Array = (bytes) => bytes,
): Promise<number> {
  const random = new Random(seed);
  const tensors = naiveTensors(input);
  const memory = new LocalMemory(input, tensors, random);
  const plan = await planTransfer(input);
  const sides = tensors.flatMap(({ source, target }) => [...source.byRank.keys(), ...target.byRank.keys()]);
  const ranks = [...new Set(sides)].sort((a, b) => a - b);
  const programs = ranks.map((rank) => {
    const strides = memory.stridesOf(rank);
    const { bytes, digest } = plan.program(rank, strides.size === 0 ? {} : { strides });
    const program = readProgram(tamper(bytes, rank));
    expect([program.rank, program.digest, digest]).toEqual([rank, plan.digest, plan.digest]);
    checkProgram(program);
    const { bucketBytes = 8 << 20, bucketsInFlight = 2, peersInFlight = 4 } = input;
    expect(program).toMatchObject({ bucketBytes, bucketsInFlight, peersInFlight });
    const planned = {
      input,
      program,
      memory,
      chunks: [...plan.chunks({ rank })],
      buckets: [...plan.buckets({ rank })],
    };
    checkAgainstChunks(planned);
    checkBuffers(planned, tensors);
    checkPieces(program, tensors);
    return program;
  });
  runPrograms(programs, (rank, tensor, kind) => memory.of(rank, tensor, kind), random);
  memory.checkTargets();
  const idle = plan.program(Math.max(...ranks) + 1);
  expect(readProgram(idle.bytes).channels).toEqual([]);
  return programs.reduce((sum, { pieces }) => sum + pieces.length, 0);
}

describe("programs of all ranks, run on bytes", () => {
  const cases = {
    "tiny shapes with any strides": { inputs: planInputs({ extent: 6, readings: ["split"] }), runs: 250 },
    "one dimension of several buckets": {
      inputs: planInputs({ extent: 1100, ndim: 1, bucketBytes: fc.constantFrom(4096, 4500) }),
      runs: 30,
    },
    "three dimensions": { inputs: planInputs({ extent: 5, ndim: 3 }), runs: 150 },
  };
  for (const [name, { inputs, runs }] of Object.entries(cases)) {
    it(name, async () => {
      let pieces = 0;
      const property = fc.asyncProperty(inputs, fc.nat(), async (input, seed) => {
        pieces += await checkPrograms(input, seed);
      });
      await fc.assert(property, { seed: 6, numRuns: runs });
      expect(pieces).toBeGreaterThan(runs);
    });
  }
});

describe("pools smaller than all pieces", () => {
  const mesh = (ranks: readonly number[]) => new DeviceMesh([ranks.length], { ranks });
  const targets = { "one shard": [Shard(0), [8, 9, 10]], "every rank": [Replicate(), [1, 8]] } as const;
  for (const [name, [placement, ranks]] of Object.entries(targets)) {
    it(`never stop a plan to ${name}`, async () => {
      const input: PlanInput = {
        pairs: {
          p: {
            source: { mesh: mesh([3, 0, 1]), placements: [Partial("sum")] },
            target: { mesh: mesh(ranks), placements: [placement] },
          },
        },
        tensors: [4000, 1200, 30, 2500].map((extent, at) => ({
          name: `t${at}`,
          pair: "p",
          shape: [extent],
          dtype: at === 1 ? "bfloat16" : "float64",
        })),
        strategy: "direct",
        bucketBytes: 4096,
        bucketsInFlight: 1,
        peersInFlight: 1,
      };
      for (let seed = 0; seed < 5; seed++) await checkPrograms(input, seed);
      const plan = await planTransfer(input);
      const pools = [3, 0, 1].map((rank) => readProgram(plan.program(rank).bytes));
      const owners = pools.filter(({ pieces }) => pieces.length > 0);
      expect(owners.length).toBeGreaterThan(0);
      for (const { poolBytes, pieces } of owners)
        expect(poolBytes).toBeLessThan(pieces.reduce((sum, piece) => sum + piece.poolBytes, 0));
    });
  }
});

/** `poolBytes`, of which only that it is enough can be said from outside, and the first of no dependencies. */
function isFree(bytes: Uint8Array, at: number): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const row = at - Number(view.getBigUint64(112, true));
  if (row < 0 || row >= view.getUint32(72, true) * 40) return at >= 176 && at < 184;
  const dependencies = view.getUint32(at - (row % 40) + 24, true);
  return row % 40 >= 20 && row % 40 < 24 && dependencies === 0;
}

describe("the checks of programs", () => {
  it("notice any bit that changes", async () => {
    let changed = 0;
    const inputs = planInputs({ extent: 6, ndim: 2, readings: ["split"] });
    const property = fc.asyncProperty(inputs, fc.nat(), fc.nat(), async (input, seed, bit) => {
      let at = -1;
      let flipped = false;
      const flip = (bytes: Uint8Array): Uint8Array => {
        if (at >= 0 || bytes.length <= 192) return bytes;
        at = bit % (bytes.length * 8);
        if (isFree(bytes, at >> 3)) return bytes;
        const copy = bytes.slice();
        copy[at >> 3]! ^= 1 << (at & 7);
        flipped = true;
        return copy;
      };
      const failure = await checkPrograms(input, seed, flip).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (!flipped) return;
      changed++;
      expect(failure, `bit ${at & 7} of byte ${at >> 3}`).toBeInstanceOf(Error);
    });
    await fc.assert(property, { seed: 7, numRuns: 300 });
    expect(changed).toBeGreaterThan(200);
  });
});
