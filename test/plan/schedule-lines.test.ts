/** Which channel an end of a link carries next, beside a naive search of all of them. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { EventLine } from "../../src/plan/schedule/event-queue.ts";
import type { Wiring } from "../../src/plan/schedule/jobs.ts";
import { Lines } from "../../src/plan/schedule/lines.ts";

/** Channels between so many senders, whose ends come first, and so many receivers: one for each two. */
function wiringOf(senders: number, receivers: number): Wiring {
  const count = senders * receivers;
  return {
    outEnd: Int32Array.from({ length: count }, (_, row) => Math.floor(row / receivers)),
    inEnd: Int32Array.from({ length: count }, (_, row) => senders + (row % receivers)),
    ends: senders + receivers,
    duration: new Float64Array(0),
    latency: 0,
    inFlight: 1,
    bucketBytes: 1,
  };
}

describe("the lines at the ends of links", () => {
  it("give the first channel whose other end is free, as a search of all does", () => {
    const step = fc.record({
      row: fc.nat(),
      number: fc.integer({ min: 0, max: 3 }),
      end: fc.nat(),
      isBusy: fc.boolean(),
      takes: fc.boolean(),
    });
    const sizes = fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 30 }));
    let found = 0;
    fc.assert(
      fc.property(sizes, fc.array(step, { minLength: 60, maxLength: 100 }), ([senders, receivers], steps) => {
        const wiring = wiringOf(senders, receivers);
        const { outEnd, inEnd, ends } = wiring;
        const lines = new Lines(wiring, (row, other) => row > other);
        const isBusy = new Uint8Array(ends);
        const naive = new Map<number, number>();
        for (const { row, number, end, takes, ...set } of steps) {
          const one = row % outEnd.length;
          if (!naive.has(one)) {
            naive.set(one, number);
            lines.enter(one, number);
          }
          const at = end % ends;
          isBusy[at] = set.isBusy ? 1 : 0;
          if (!takes) continue;
          const otherOf = (candidate: number) =>
            outEnd[candidate] === at ? inEnd[candidate]! : outEnd[candidate]!;
          const [first] = [...naive.keys()]
            .filter((each) => (outEnd[each] === at || inEnd[each] === at) && isBusy[otherOf(each)] === 0)
            .sort((a, b) => naive.get(a)! - naive.get(b)! || b - a);
          expect(lines.takeFirst(at, isBusy)).toBe(first ?? -1);
          if (first !== undefined) {
            naive.delete(first);
            found++;
          }
        }
      }),
      { seed: 12, numRuns: 300 },
    );
    expect(found).toBeGreaterThan(2000);
  });

  it("are looked at up to that channel, however many stand behind it", () => {
    const wiring = wiringOf(1000, 1);
    const lines = new Lines(wiring, (row, other) => row < other);
    for (let row = 999; row >= 0; row--) lines.enter(row, row);
    let looks = 0;
    const isBusy = new Proxy(new Uint8Array(1001).fill(1, 0, 3), {
      get(flags, end) {
        looks++;
        return flags[Number(end)];
      },
    });
    expect(lines.takeFirst(1000, isBusy)).toBe(3);
    expect(looks).toBe(4);
  });
});

describe("events whose times come in order", () => {
  it("go as they came, however many are under way", () => {
    const line = new EventLine();
    let [pushed, popped] = [0, 0];
    const pop = () => {
      expect([line.time, line.first]).toEqual([popped >> 1, popped]);
      expect(line.pop()).toBe(popped++);
    };
    for (const [more, less] of [
      [1500, 1400],
      [900, 10],
      [3000, 3500],
      [5000, 5490],
    ] as const) {
      for (let count = 0; count < more; count++) line.push(pushed >> 1, pushed++);
      for (let count = 0; count < less; count++) pop();
    }
    expect(line.time).toBe(Number.POSITIVE_INFINITY);
  });
});
