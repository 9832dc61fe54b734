/** Records of other ranks that do not fit together: refused by name, before anything is walked by them. */
import { describe, expect, it } from "vitest";
import type { TensorName } from "../../src/bus/batch/names.ts";
import { planDirection } from "../../src/bus/batch/plan.ts";
import { namesDigest, requireCount, requireNames } from "../../src/bus/batch/records.ts";
import type { BatchSubject, PlanSide } from "../../src/bus/batch/subject.ts";
import { DeviceMesh, Replicate } from "../../src/layout/index.ts";

const pairs = ["weights", "states"].map((pair) => ({
  pair,
  local: "trainer",
  remote: "engine",
  localLayout: "",
  remoteLayout: "",
}));
const names: readonly TensorName[] = [
  { pair: 0, name: "a" },
  { pair: 0, name: "b" },
  { pair: 1, name: "a" },
];

/** A record that tells of these names as they are. */
function recordOf(list: readonly TensorName[]) {
  return { pairs, names: { count: list.length, digest: namesDigest(list, pairs) } };
}

describe("names that were published beside a record", () => {
  it("are its own, sorted, each once, of pairs that there are", () => {
    expect(() => requireNames(names, recordOf(names))).not.toThrow();
    const malformed: [string, readonly TensorName[], ReturnType<typeof recordOf>][] = [
      ["others", names, recordOf(names.slice(1))],
      ["unsorted", [...names].reverse(), recordOf([...names].reverse())],
      ["twice", [names[0]!, names[0]!], recordOf([names[0]!, names[0]!])],
      ["no pair", [{ pair: 2, name: "a" }], recordOf(names)],
      ["fewer", names, { ...recordOf(names), names: { ...recordOf(names).names, count: 2 } }],
    ];
    for (const [what, list, record] of malformed)
      expect(() => requireNames(list, record), what).toThrow(expect.objectContaining({ code: "TB_VERSION" }));
  });

  it("are as many as the record says, if they are known by their digest", () => {
    const { names: told } = recordOf(names);
    expect(() => requireCount(names, { names: told })).not.toThrow();
    expect(() => requireCount(names, { names: { ...told, count: 4 } })).toThrow(
      expect.objectContaining({ code: "TB_VERSION" }),
    );
  });
});

describe("a side", () => {
  it("whose tensors have no layout refuses the direction, and names it", () => {
    const side = (name: string, rank: number, layout: number | undefined): PlanSide => ({
      name,
      tensors: [{ pair: 0, name: "a" }],
      otherOf: Int32Array.of(0),
      layouts: [{ mesh: new DeviceMesh([1], { ranks: [rank] }), placements: [Replicate()] }],
      tableOf: () => ({
        kinds: [{ pair: 0, dtype: "float32", shape: [4], layout }],
        kindOf: Uint32Array.of(0),
      }),
    });
    const subject = (layout: number | undefined): BatchSubject => ({
      batch: "1",
      sides: [side("trainer", 0, 0), side("engine", 1, layout)],
      pairs: [{ pair: "weights", whole: false, ranks: [[0], [1]] }],
      match: "exact",
      bucketBytes: 4096,
      planning: {},
    });
    expect(planDirection(subject(0), 0)).not.toHaveProperty("refused");
    expect(planDirection(subject(undefined), 0)).toMatchObject({
      refused: { code: "TB_VERSION", details: { side: "engine", pair: "weights" } },
    });
  });
});
