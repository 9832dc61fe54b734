import { describe, expect, it } from "vitest";
import {
  arithmeticTypes,
  type DType,
  dtypes,
  isOpaque,
  isPacked,
  itemSize,
  unitOf,
} from "../../src/layout/index.ts";
import {
  DeviceMesh,
  Partial,
  type Placement,
  Plan,
  type PlanInput,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
  type TensorBusError,
} from "../../src/plan/index.ts";
import { verifyChunks } from "../../src/plan/verify/verify.ts";
import { Random } from "../kit/random.ts";

const opaque = dtypes.filter(isOpaque);
const packed = opaque.filter(isPacked);

function input(
  dtype: DType,
  [source, target]: readonly [Placement, Placement] = [Shard(0), Shard(1)],
  shape: readonly number[] = [6, 16],
  extra: { readonly targetDtype?: DType } = {},
): PlanInput {
  return {
    pairs: {
      p: {
        source: { mesh: new DeviceMesh([3]), placements: [source], stridedShard: "split" },
        target: { mesh: new DeviceMesh([2], { ranks: [3, 4] }), placements: [target], stridedShard: "split" },
      },
    },
    tensors: [{ name: "w", pair: "p", shape, dtype, ...extra }],
  };
}

async function failure(what: PlanInput): Promise<TensorBusError> {
  return planTransfer(what).then(
    () => Promise.reject(new Error("was planned")),
    (error: TensorBusError) => error,
  );
}

describe("types that are only moved", () => {
  it.each(opaque)("%s is planned, proved and saved, in elements", async (dtype) => {
    const plan = await planTransfer(input(dtype));
    plan.verify({ whole: true });
    const chunks = [...plan.chunks()];
    expect(chunks.map(({ lengths }) => lengths)).toEqual(Array(6).fill([2n, 8n]));
    expect(chunks.reduce((sum, { bytes }) => sum + bytes, 0n)).toBe(BigInt(96 * itemSize(dtype)));
    expect(Plan.load(plan.bytes).digest).toBe(plan.digest);
    expect([...Plan.load(plan.bytes).chunks()]).toEqual(chunks);
  });

  it("are neither cast, nor what others are cast to", async () => {
    for (const dtype of opaque) {
      for (const other of [...arithmeticTypes, ...opaque.filter((type) => type !== dtype)]) {
        const shape = input(dtype, undefined, [6, 16], { targetDtype: other });
        const back = input(other, undefined, [6, 16], { targetDtype: dtype });
        for (const [what, from, to] of [
          [shape, dtype, other],
          [back, other, dtype],
        ] as const) {
          const error = await failure(what);
          expect([error.code, error.message]).toEqual([
            "TB_DTYPE",
            expect.stringContaining(`${from} cannot be cast to ${to}`),
          ]);
        }
      }
    }
  });

  it("have no reductions", async () => {
    const error = await failure(input("uint64", [Partial("max"), Shard(0)]));
    expect([error.code, error.message]).toEqual([
      "TB_PARTIAL_OP",
      expect.stringContaining("uint64 cannot be reduced"),
    ]);
  });

  it("leave the canonical bytes of plans without them as they were", async () => {
    const plan = await planTransfer(input("bfloat16"));
    expect(new DataView(plan.bytes.buffer, plan.bytes.byteOffset).getUint16(4, true)).toBe(1);
  });
});

describe("packed types", () => {
  it.each(packed)("%s is planned exactly where no cut falls inside of a byte", async (dtype) => {
    const { elements: unit } = unitOf(dtype);
    const random = new Random(17);
    const placement = (): Placement => {
      const dim = random.below(3) - 1;
      if (dim < 0) return Replicate();
      return random.below(4) === 0 ? StridedShard(dim, 1 + random.below(3)) : Shard(dim);
    };
    const counts = { planned: 0, refused: 0 };
    for (let run = 0; run < 300; run++) {
      const what = input(dtype, [placement(), placement()], [random.below(5), random.below(33)]);
      // The same of bytes, one for an element, says where every box begins and ends.
      const inBytes = await planTransfer({
        ...what,
        tensors: [{ ...what.tensors[0]!, dtype: "uint8" }],
        bucketBytes: 4096,
      });
      const whole = [...inBytes.chunks()].every(({ srcOffsets, dstOffsets, lengths }) =>
        [srcOffsets[1]!, dstOffsets[1]!, lengths[1]!].every((place) => Number(place) % unit === 0),
      );
      const plan = await planTransfer(what).catch((error: TensorBusError) => error);
      if (!(plan instanceof Plan)) {
        counts.refused++;
        expect(plan.code).toBe("TB_DTYPE");
        const { element, dim } = plan.details as { element: number; dim: number };
        expect([dim, element % unit === 0]).toEqual([1, false]);
        // Tensors without elements, and cuts that meet on both sides, have no chunk that shows the cut.
        continue;
      }
      counts.planned++;
      expect(whole).toBe(true);
      verifyChunks(what, plan.chunks(), plan.buckets());
      expect([...plan.chunks()].map(({ lengths }) => lengths)).toEqual(
        [...inBytes.chunks()].map(({ lengths }) => lengths),
      );
    }
    expect(Math.min(counts.planned, counts.refused)).toBeGreaterThan(40);
  });

  it("say where a cut falls inside of a byte", async () => {
    const error = await failure(input("float4_e2m1fn", [Shard(0), Shard(1)], [6, 14]));
    expect(error.code).toBe("TB_DTYPE");
    expect(error.message).toMatch(
      /tensor "w", target: dimension 1 of \[6, 14\] is cut at element 7, inside of a byte/,
    );
    expect(error.details).toMatchObject({
      tensor: "w",
      side: "target",
      dim: 1,
      element: 7,
      dtype: "float4_e2m1fn",
    });
    const end = await failure(input("float6_e3m2fn", [Replicate(), Replicate()], [6, 14]));
    expect(end.message).toMatch(
      /dimension 1 of \[6, 14\] ends at element 14.*4 elements of float6_e3m2fn lie in 3 bytes/,
    );
    expect((await failure(input("float4_e2m1fn", [Replicate(), Replicate()], []))).code).toBe("TB_SHAPE");
  });

  it("are not proved where a box is cut inside of a byte", async () => {
    const good = input("float4_e2m1fn", [Replicate(), Shard(1)], [1, 8]);
    const plan = await planTransfer(good);
    const chunks = [...plan.chunks()].map((chunk) => ({ ...chunk, lengths: [1n, 3n] }));
    expect(() => verifyChunks(good, chunks, plan.buckets())).toThrow(
      expect.objectContaining({ code: "TB_PLAN_INVALID" }),
    );
  });

  it("take strides of whole bytes, with rows that are contiguous", async () => {
    const plan = await planTransfer(input("float4_e2m1fn"));
    const run = (source: readonly number[]) => plan.program(0, { strides: { 0: { source } } });
    expect(run([20, 1]).buffers[0]).toMatchObject({ dtype: "uint8", span: 10n + 8n });
    expect(() => run([21, 1])).toThrow(expect.objectContaining({ code: "TB_STRIDES" }));
    expect(() => run([32, 2])).toThrow(expect.objectContaining({ code: "TB_STRIDES" }));
  });
});
