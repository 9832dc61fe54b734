import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  DeviceMesh,
  diffPlans,
  type Plan,
  type PlanInput,
  planTransfer,
  Shard,
  TensorBusError,
} from "../../src/plan/index.ts";
import { planInputs } from "./kit/arbitrary.ts";

fc.configureGlobal({ seed: 20_261 });

/** Bytes between ends, from all chunks; what stays within an end left out. */
function bytesBetween(plan: Plan): Map<string, bigint> {
  const sums = new Map<string, bigint>();
  for (const { srcRank, dstRank, bytes } of plan.chunks()) {
    if (srcRank === dstRank) continue;
    const key = `${srcRank} ${dstRank}`;
    sums.set(key, (sums.get(key) ?? 0n) + bytes);
  }
  return sums;
}

function changesOf(before: Plan, after: Plan): [string, bigint, bigint][] {
  const [old, now] = [bytesBetween(before), bytesBetween(after)];
  return [...new Set([...old.keys(), ...now.keys()])]
    .map((key): [string, bigint, bigint] => [key, old.get(key) ?? 0n, now.get(key) ?? 0n])
    .filter(([, one, other]) => one !== other)
    .sort();
}

async function planned(input: PlanInput): Promise<Plan | undefined> {
  try {
    return await planTransfer(input);
  } catch (error) {
    if (error instanceof TensorBusError) return undefined;
    throw error;
  }
}

/** Changes of an input, of which each makes another plan wherever it can be applied. */
const edits: Record<string, (input: PlanInput) => PlanInput> = {
  drop: (input) => ({ ...input, tensors: input.tensors.slice(1) }),
  add: (input) => ({ ...input, tensors: [...input.tensors, { ...input.tensors[0]!, name: "another" }] }),
  repeat: (input) => ({ ...input, tensors: [...input.tensors, input.tensors[0]!] }),
  rename: (input) => ({
    ...input,
    tensors: [{ ...input.tensors[0]!, name: "renamed" }, ...input.tensors.slice(1)],
  }),
  grow: (input) => ({
    ...input,
    tensors: input.tensors.map((one) => ({ ...one, shape: one.shape.map((size) => size + 1) })),
  }),
  cast: (input) => ({
    ...input,
    tensors: input.tensors.map((one) => ({ ...one, targetDtype: "int8" as const })),
  }),
  turn: (input) => ({ ...input, tensors: [...input.tensors].reverse() }),
  strategy: (input) => ({ ...input, strategy: input.strategy === "direct" ? "striped" : "direct" }),
  buckets: (input) => ({ ...input, bucketBytes: 8192, peersInFlight: 3 }),
  topology: (input) => ({
    ...input,
    topology: { ranksPerHost: 3, hostMBps: 7, networkMBps: 5, latencyUs: 1 },
  }),
  mesh: (input) => ({
    ...input,
    pairs: {
      ...input.pairs,
      a: {
        ...input.pairs["a"]!,
        target: {
          ...input.pairs["a"]!.target,
          mesh: new DeviceMesh(input.pairs["a"]!.target.mesh.shape, {
            ranks: [...input.pairs["a"]!.target.mesh.ranks].map((rank) => rank + 1),
          }),
        },
      },
    },
  }),
  name: (input) => ({
    ...input,
    pairs: Object.fromEntries(Object.entries(input.pairs).map(([name, pair]) => [`${name}!`, pair])),
    tensors: input.tensors.map((one) => ({ ...one, pair: `${one.pair}!` })),
  }),
};

describe("the difference of two plans", () => {
  it("is what their chunks differ in, and is never nothing where their digests differ", async () => {
    const kinds = fc.constantFrom(...Object.keys(edits));
    const inputs = planInputs({ extent: 9, ndim: 2, partial: true, readings: ["split"] });
    const seen = new Set<string>();
    await fc.assert(
      fc.asyncProperty(inputs, kinds, async (input, kind) => {
        const [before, after] = [await planned(input), await planned(edits[kind]!(input))];
        if (before === undefined || after === undefined) return;
        const diff = diffPlans(before, after);
        expect(diff.equal).toBe(before.digest === after.digest);
        const { options, tensors, reordered, ranks, links } = diff;
        const found = options.length + tensors.length + Number(reordered);
        expect(found === 0, `${kind}: ${JSON.stringify(options)}`).toBe(diff.equal);
        if (!diff.equal) seen.add(kind);
        expect(
          links.map(({ from, to, bytes }) => [`${from} ${to}`, bytes.before, bytes.after]).sort(),
        ).toEqual(changesOf(before, after));
        for (const [rank, sums] of ranks.map((one) => [one.rank, one] as const)) {
          const of = (plan: Plan) => plan.stats().ranks.find((one) => one.rank === rank);
          expect(sums.sent).toEqual({ before: of(before)?.sent ?? 0n, after: of(after)?.sent ?? 0n });
        }
        const changed = tensors.reduce((sum, { count, change }) => sum + (change === "added" ? 0 : count), 0);
        expect(changed + diff.unchangedTensors).toBe(before.input.tensors.length);
      }),
      { numRuns: 120 },
    );
    expect(seen.size).toBeGreaterThan(8);
  });

  it("groups tensors that changed alike, and names what changed", async () => {
    const side = (ranks: number[]) => ({ mesh: new DeviceMesh([2], { ranks }), placements: [Shard(0)] });
    const input = (over: object): PlanInput => ({
      pairs: { p: { source: side([0, 1]), target: side([2, 3]) } },
      tensors: ["a", "b", "c"].map((name) => ({
        name,
        pair: "p",
        shape: [4, 4],
        dtype: "float32",
        ...(name === "c" ? {} : over),
      })),
    });
    const [before, after] = [
      await planTransfer(input({})),
      await planTransfer(input({ targetDtype: "bfloat16" })),
    ];
    expect(diffPlans(before, after)).toMatchObject({
      equal: false,
      options: [],
      reordered: false,
      unchangedTensors: 1,
      tensors: [
        {
          change: "changed",
          count: 2,
          example: "a",
          fields: ["targetDtype"],
          deliveredBytes: { before: 128n, after: 64n },
        },
      ],
      ranks: [0, 1, 2, 3].map((rank) => ({ rank })),
      links: [
        { from: 0, to: 2, bytes: { before: 96n, after: 64n } },
        { from: 1, to: 3, bytes: { before: 96n, after: 64n } },
      ],
      hosts: undefined,
    });
    expect(diffPlans(before, before)).toMatchObject({
      equal: true,
      unchangedTensors: 3,
      tensors: [],
      links: [],
    });
  });
});
