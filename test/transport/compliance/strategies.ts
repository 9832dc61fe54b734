import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DeviceMesh, Replicate, Shard } from "../../../src/layout/index.ts";
import type { PlanInput, Strategy, TensorInput } from "../../../src/plan/input/types.ts";
import { type CaseOptions, castTypes, randomCase, type TransferCase } from "./cases.ts";
import { prepareCase, runCase, type Subject, type World } from "./world.ts";

const seedsEach = 8;
const topology = { hosts: [0, 0, 0, 1, 1, 2], hostMBps: 1000, networkMBps: 100, latencyUs: 0 };
const tight = { bucketBytes: 4096, bucketsInFlight: 1, peersInFlight: 1 };

/** Replicas that hand stripes on: nothing is sent before it has arrived, and nobody waits for ever. */
export function testStrategies(subject: Subject): void {
  describe(`${subject.name}: strategies`, () => {
    let world: World;
    beforeAll(async () => {
      world = await subject.open(16);
    });
    afterAll(() => world?.[Symbol.asyncDispose]());

    const each = (name: string, options: CaseOptions, firstSeed: number) =>
      test(name, async () => {
        for (let seed = firstSeed; seed < firstSeed + seedsEach; seed++) {
          await runCase(world.sessions.slice(0, 6), randomCase(seed, options));
        }
      });
    const striped = { strategy: "striped", bucketBytes: 4096 } as const;
    each("stripes over all replicas", { options: striped }, 1100);
    each("stripes within hosts", { options: { ...striped, topology } }, 1200);
    each("what costs least", { options: { ...tight, topology } }, 1300);
    each("stripes, cast once", { types: castTypes, options: striped }, 1400);
    each("stripes of sums", { partial: "sum", options: striped }, 1500);
    each("stripes of averages within hosts", { ...averages, options: { ...striped, topology } }, 1600);
    each("one bucket and one peer in flight", { options: { ...striped, ...tight } }, 1700);
    each(
      "one bucket and one peer in flight, sums",
      { partial: "sum", options: { ...striped, ...tight } },
      1800,
    );

    for (const limits of [{ bucketBytes: 1 << 16 }, tight]) {
      const name = limits === tight ? ", one bucket and one peer in flight" : "";
      test(`8 replicas on one host take an eighth from the sources${name}`, async () => {
        const sent = async (strategy: Strategy): Promise<readonly bigint[]> => {
          await using prepared = await prepareCase(world.sessions, eightToEight({ ...limits, strategy }));
          const reports = await prepared.round();
          return [reports.slice(0, 8), reports.slice(8)].map((side) =>
            side.reduce((sum, { bytesSent }) => sum + bytesSent, 0n),
          );
        };
        const [direct, striped] = [await sent("direct"), await sent("striped")];
        expect(direct).toEqual([payload * 8n, 0n]);
        expect(striped[0]).toBe(payload);
        // What is handed on travels in the target's type: bfloat16 that came from float32, float32 that came as bfloat16.
        expect(striped[1]).toBe(handedOn);
      });
    }
  });
}

const averages: CaseOptions = { partial: "avg", types: [["float32", "bfloat16"]] };

const tensors: readonly Omit<TensorInput, "pair">[] = [
  { name: "float32 to bfloat16", shape: [32, 72], dtype: "float32", targetDtype: "bfloat16" },
  { name: "bfloat16 to float32", shape: [64, 40], dtype: "bfloat16", targetDtype: "float32" },
  { name: "as it is", shape: [16, 160], dtype: "int16" },
];
/** Bytes of all tensors between the sides, each once; and what replicas hand on: each byte to seven others. */
const payload = 32n * 72n * 2n + 64n * 40n * 2n + 16n * 160n * 2n;
const handedOn = (32n * 72n * 2n + 64n * 40n * 4n + 16n * 160n * 2n) * 7n;

/** Ranks 0 to 7 shard what ranks 8 to 15, of one host, all want. */
function eightToEight(options: Partial<PlanInput>): TransferCase {
  const ranks = (first: number) => Array.from({ length: 8 }, (_, index) => first + index);
  return {
    name: "eight to eight",
    seed: 8,
    world: 16,
    strided: false,
    input: {
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([8], { ranks: ranks(0) }), placements: [Shard(0)] },
          target: { mesh: new DeviceMesh([8], { ranks: ranks(8) }), placements: [Replicate()] },
        },
      },
      tensors: tensors.map((tensor) => ({ ...tensor, pair: "p" })),
      topology: { ranksPerHost: 8, hostMBps: 400_000, networkMBps: 50_000, latencyUs: 5 },
      ...options,
    },
  };
}
