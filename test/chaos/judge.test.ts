/** What the runner looks for is found where it is. */
import { describe, expect, it } from "vitest";
import { judgeEnds, judgeRound } from "./judge.ts";
import type { Outcome } from "./protocol.ts";

/** Of rank 0 to 3, two trainers and two engines, after a round of step 7; engines held step 6 before. */
function outcomes(...each: Partial<Outcome>[]): Outcome[] {
  return each.map((one, rank) => {
    const code = one.code ?? "none";
    const steps = rank < 2 || code === "none" ? [7] : [6];
    return { id: rank, code, ms: 10, steps, ...one };
  });
}

const good = {};
const failed = { code: "TB_CANCELLED", rank: 1 };
const expected = { commit: "direct", step: 7, limitMs: 1000 } as const;
const staged = { ...expected, commit: "staged" } as const;

describe("a round", () => {
  it("that succeeded, failed on all, or was met by a host's death has nothing wrong", () => {
    for (const options of [expected, staged, { ...staged, culprit: 1 }]) {
      expect(judgeRound(outcomes(good, good, good, good), options)).toEqual([]);
      expect(judgeRound(outcomes(failed, { code: "TB_TIMEOUT", rank: 2 }, failed, failed), options)).toEqual(
        [],
      );
      expect(judgeRound(outcomes(good, { code: "ended" }, good, { code: "TB_IN_DOUBT" }), options)).toEqual(
        [],
      );
    }
  });

  it.each([
    ["late", expected, outcomes(good, { ms: 1001 }, good, good), /rank 1: its call took 1001 ms/],
    ["untyped", expected, outcomes({ code: "untyped undefined" }, good, good, good), /rank 0: untyped/],
    [
      "of no step",
      expected,
      outcomes(good, good, { steps: [-1, 7] }, good),
      /rank 2: holds an element of no/,
    ],
    [
      "of an old step",
      expected,
      outcomes(good, good, good, { steps: [6] }),
      /rank 3: .* step 7 left steps 6/,
    ],
    [
      "half of a staged one",
      staged,
      outcomes(failed, failed, { ...failed, steps: [6, 7] }, failed),
      /was split/,
    ],
    [
      "after a staged failure",
      staged,
      outcomes(failed, failed, failed, { ...failed, steps: [7] }),
      /changed its/,
    ],
    ["split", staged, outcomes(good, good, good, failed), /completed by 3 of 4/],
    [
      "blamed",
      { ...expected, culprit: 3 },
      outcomes(failed, good, good, good),
      /rank 0: .* names rank 1, and not 3/,
    ],
  ] as const)("with one call that is %s is told", (_, options, ends, message) => {
    const wrong = judgeRound(ends, options);
    expect(wrong.join("; ")).toMatch(message);
  });

  it("that was taken back is blamed on whoever took it back, but the next one is not", () => {
    const taken = { code: "TB_CANCELLED", rank: 2, round: 2 };
    const next = { ...failed, round: 3 };
    const options = { ...expected, culprit: 2 };
    expect(judgeRound(outcomes(next, taken, taken, { code: "TB_TIMEOUT", rank: 1 }), options)).toEqual([]);
    const same = judgeRound(outcomes({ ...next, round: 2 }, taken, taken, taken), options);
    expect(same.join()).toMatch(/rank 0: .* names rank 1, and not 2/);
  });

  it("over connections that lie may leave anything in tensors, where it was direct and failed there", () => {
    const broken = { ...failed, steps: [-1] };
    const lied = { ...expected, isCorrupted: true };
    expect(judgeRound(outcomes(good, good, good, broken), lied)).toEqual([]);
    expect(judgeRound(outcomes(good, good, good, { ...good, steps: [-1] }), lied)).not.toEqual([]);
    expect(
      judgeRound(outcomes(failed, failed, failed, broken), { ...staged, isCorrupted: true }),
    ).not.toEqual([]);
  });

  it("in direct mode may be completed by some", () => {
    expect(judgeRound(outcomes(good, failed, good, failed), expected)).toEqual([]);
  });
});

it("calls of any kind end in time and with a code", () => {
  expect(judgeEnds(outcomes(good, { code: "ended", ms: 9999 }, { ms: 2000 }), 1000)).toHaveLength(1);
});
