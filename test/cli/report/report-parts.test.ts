import { readdirSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { pack, unpack } from "../../../src/cli/report/pack.ts";
import { sumHeat } from "../../../src/cli/report/page/heat-sums.ts";
import { RankAxis } from "../../../src/cli/report/page/rank-axis.ts";
import { fieldOf, formOf, valuesOf } from "../../../src/cli/report/page/spec-form.ts";
import { placeBars, sumRates } from "../../../src/cli/report/page/timeline-data.ts";
import type { ChannelColumns } from "../../../src/cli/report/report.ts";
import { loadSpec, parseSpec } from "../../../src/model/spec.ts";
import { planTransfer } from "../../../src/plan/index.ts";

fc.configureGlobal({ seed: 20_261 });

test("what is packed is unpacked", () => {
  const columns = fc.dictionary(
    fc.string(),
    fc.oneof(fc.uint8Array(), fc.uint32Array(), fc.float64Array({ noNaN: true })),
  );
  fc.assert(
    fc.property(columns, fc.jsonValue(), (some, values) => {
      const parts = unpack(pack({ values, columns: some }));
      expect(parts.values).toEqual(JSON.parse(JSON.stringify(values)));
      expect(parts.columns).toEqual({ ...some });
    }),
    { numRuns: 200 },
  );
});

describe("an axis of ranks", () => {
  const axis = (count: number, perHost: number, first = 0) =>
    new RankAxis(
      Uint32Array.from({ length: count }, (_, at) => first + at),
      Uint32Array.from({ length: count }, (_, at) => Math.floor((first + at) / perHost)),
      perHost > 1,
    );

  test("shows ranks where there is room, else hosts, else several of them", () => {
    const ranks = axis(1024, 8);
    expect(ranks.cells(ranks.whole, 1024)).toMatchObject({ isRanks: true });
    expect(ranks.cells(ranks.whole, 1023).spans).toHaveLength(128);
    expect(ranks.cells(ranks.whole, 127).spans).toHaveLength(64);
    expect(ranks.cells(ranks.whole, 1).spans).toEqual([ranks.whole]);
    expect(ranks.label({ start: 8, end: 16 })).toBe("host 1 (ranks 8–15)");
    expect(ranks.label({ start: 8, end: 32 })).toBe("hosts 1–3 (ranks 8–31)");
    expect(ranks.label({ start: 9, end: 16 })).toBe("ranks 9–15");
    expect(ranks.label({ start: 9, end: 10 })).toBe("rank 9");
  });

  test("takes blocks of eight where nobody knows hosts", () => {
    const ranks = axis(100, 1);
    const { spans } = ranks.cells(ranks.whole, 50);
    expect(spans).toHaveLength(13);
    expect(ranks.label(spans.at(-1)!)).toBe("ranks 96–99");
  });

  test("cells cover a window, in order, whatever is asked", () => {
    const sizes = fc.record({
      count: fc.integer({ min: 1, max: 300 }),
      perHost: fc.integer({ min: 1, max: 9 }),
      first: fc.integer({ min: 0, max: 20 }),
      from: fc.nat(299),
      length: fc.integer({ min: 1, max: 300 }),
      most: fc.integer({ min: 1, max: 60 }),
    });
    fc.assert(
      fc.property(sizes, ({ count, perHost, first, from, length, most }) => {
        const ranks = axis(count, perHost, first);
        const start = Math.min(from, count - 1);
        const end = Math.min(count, start + length);
        const { spans, isRanks } = ranks.cells({ start, end }, most);
        expect(spans[0]!.start).toBeLessThanOrEqual(start);
        expect(spans.at(-1)!.end).toBeGreaterThanOrEqual(end);
        for (const [at, span] of spans.entries()) {
          expect(span.end).toBeGreaterThan(span.start);
          if (at > 0) expect(span.start).toBe(spans[at - 1]!.end);
        }
        expect(isRanks).toBe(spans.length === spans.at(-1)!.end - spans[0]!.start);
        expect(spans.length === 1 || spans.length <= most).toBe(true);
      }),
      { numRuns: 300 },
    );
  });
});

const ranks = 12;
const channels = fc
  .array(
    fc.record({
      stage: fc.integer({ min: 0, max: 2 }),
      from: fc.nat(ranks - 1),
      to: fc.nat(ranks - 1),
      bytes: fc.integer({ min: 1, max: 1000 }),
      start: fc.nat(100),
      length: fc.integer({ min: 1, max: 60 }),
    }),
    { maxLength: 60 },
  )
  .map(
    (all): ChannelColumns => ({
      stage: Uint8Array.from(all, ({ stage }) => stage),
      from: Uint32Array.from(all, ({ from }) => from),
      to: Uint32Array.from(all, ({ to }) => to),
      wave: new Uint32Array(all.length),
      bytes: Float64Array.from(all, ({ bytes }) => bytes),
      start: Uint32Array.from(all, ({ start }) => start),
      end: Uint32Array.from(all, ({ start, length }) => start + length),
    }),
  );
const axis = new RankAxis(
  Uint32Array.from({ length: ranks }, (_, at) => at),
  Uint32Array.from({ length: ranks }, (_, at) => Math.floor(at / 4)),
  true,
);
const sumOf = (values: Iterable<number>) => [...values].reduce((a, b) => a + b, 0);

const isWithin = (all: ChannelColumns) => (at: number) =>
  Math.floor(all.from[at]! / 4) === Math.floor(all.to[at]! / 4);

describe("sums of channels", () => {
  test("a heat map by host is the sum of the one by rank", () => {
    const view = (most: number) => ({ axis, cells: axis.cells(axis.whole, most) });
    fc.assert(
      fc.property(channels, fc.option(fc.nat(2), { nil: undefined }), (all, stage) => {
        const [fine, coarse] = [
          sumHeat(all, stage, isWithin(all), view(12), view(12)),
          sumHeat(all, stage, isWithin(all), view(3), view(3)),
        ];
        expect([fine.bytes.length, coarse.bytes.length]).toEqual([144, 9]);
        for (let cell = 0; cell < 9; cell++) {
          const [row, column] = [Math.floor(cell / 3) * 4, (cell % 3) * 4];
          const inside = [...fine.bytes.keys()].filter(
            (at) => Math.floor(at / 12 / 4) * 4 === row && Math.floor((at % 12) / 4) * 4 === column,
          );
          expect(coarse.bytes[cell]).toBe(sumOf(inside.map((at) => fine.bytes[at]!)));
        }
        const wanted = [...all.bytes.keys()].filter((at) => stage === undefined || all.stage[at] === stage);
        expect(sumOf(fine.bytes)).toBe(sumOf(wanted.map((at) => all.bytes[at]!)));
        expect(sumOf(fine.channels)).toBe(wanted.length);
        const within = wanted.filter(isWithin(all)).map((at) => all.bytes[at]!);
        expect([sumOf(fine.within), sumOf(coarse.within)]).toEqual([sumOf(within), sumOf(within)]);
      }),
    );
  });

  test("the speeds of a timeline hold all bytes of the time that they show", () => {
    const view = { axis, cells: axis.cells(axis.whole, 3) };
    const time = fc.record({
      start: fc.nat(80),
      length: fc.integer({ min: 1, max: 120 }),
      slots: fc.integer({ min: 1, max: 40 }),
    });
    fc.assert(
      fc.property(channels, time, (all, { start, length, slots }) => {
        const { values } = sumRates(all, "to", view, { start, end: start + length }, slots);
        for (const row of [0, 1, 2]) {
          const expected = [...all.bytes.keys()]
            .filter((at) => Math.floor(all.to[at]! / 4) === row)
            .map((at) => {
              const shown = Math.min(all.end![at]!, start + length) - Math.max(all.start![at]!, start);
              return (Math.max(0, shown) * all.bytes[at]!) / (all.end![at]! - all.start![at]!);
            });
          const found = sumOf(values.subarray(row * slots, (row + 1) * slots)) * 4 * (length / slots);
          expect(found).toBeCloseTo(sumOf(expected), 5);
        }
      }),
    );
  });

  test("bars of one lane do not lie on each other", () => {
    const view = { axis, cells: axis.cells(axis.whole, 12) };
    fc.assert(
      fc.property(channels, (all) => {
        const { bars, lanes } = placeBars(all, "from", view, { start: 0, end: 1000 });
        expect(bars).toHaveLength(all.bytes.length);
        for (const [at, one] of bars.entries()) {
          expect(one.lane).toBeLessThan(lanes[one.row]!);
          const others = bars.slice(0, at).filter(({ row, lane }) => row === one.row && lane === one.lane);
          for (const other of others)
            expect(all.end![other.channel]!).toBeLessThanOrEqual(all.start![one.channel]!);
        }
      }),
    );
  });
});

describe("the form of a spec", () => {
  const examples = join(import.meta.dirname, "../../../examples/specs");
  const small = readdirSync(examples).filter((name) =>
    /^(fsdp2-tp\.json|llama|qwen).*(ya?ml|tp\.json)$/.test(name),
  );

  test.each(small)("%s comes back as it was", async (name) => {
    const file = join(examples, name);
    const spec = await loadSpec(file);
    const values = spec.values as Record<string, unknown>;
    const again = await parseSpec(JSON.stringify(valuesOf(formOf(values), values)), `${file}.again.json`);
    expect((await planTransfer(again.input)).digest).toBe((await planTransfer(spec.input)).digest);
    expect(again.budget).toEqual(spec.budget);
  });

  test("keeps sizes of shards and selections", () => {
    const rule = {
      match: "a",
      source: ["S(0;3", 3, 2, "2)", "R"],
      target: { placements: ["R"], select: { dim: 0, index: 1, of: 4, sizes: [3, 1] } },
    };
    const spec = { source: { mesh: [4, 1] }, target: { mesh: [2] }, placements: [rule] };
    const form = formOf(spec);
    expect([form.rules[0]!.source.placements, form.rules[0]!.target.sizes]).toEqual([
      "S(0;3,3,2,2), R",
      "3, 1",
    ]);
    const again = valuesOf(form, spec) as unknown as typeof spec;
    expect(again.placements[0]).toEqual(rule);
  });

  test("leads from a place in the spec to its field", () => {
    const rule = {
      match: "a",
      source: ["S(0)"],
      target: { placements: ["R"], select: { dim: 0, index: 1, of: 2 } },
    };
    const form = formOf({ source: { mesh: [1] }, target: { mesh: [1] }, placements: [rule, rule] });
    expect(fieldOf(["source", "mesh", 1], form)).toBe("source.mesh");
    expect(fieldOf(["placements", 1, "target", "select", "of"], form)).toBe("1.target.of");
    expect(fieldOf(["placements", 1, "target", "select"], form)).toBe("1.target.index");
    expect(fieldOf(["placements", 0, "source", 0], form)).toBe("0.source.placements");
    expect(fieldOf(["placements", 0, "match"], form)).toBe("0.match");
    expect(fieldOf(["topology", "hosts", 3], form)).toBe("topology.hosts");
    expect(fieldOf(["model"], form)).toBeUndefined();
  });
});
