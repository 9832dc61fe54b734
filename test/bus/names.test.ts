/** Names of tensors: two sorted lists that meet, and many names in few words. */
import { describe, expect, it } from "vitest";
import { alignNames, compareNames, type TensorName } from "../../src/bus/batch/names.ts";
import { collapseNames } from "../../src/model/names.ts";

describe("two lists of names", () => {
  it("meet where pair and name are equal", () => {
    const list = (...texts: string[]): TensorName[] =>
      texts.map((text) => ({ pair: Number(text[0]), name: text.slice(1) })).sort(compareNames);
    const [one, other] = [list("0a", "0b", "010", "1a", "1c"), list("0b", "01", "010", "1a", "2a")];
    expect(one.map(({ pair, name }) => `${pair}${name}`)).toEqual(["0a", "0b", "010", "1a", "1c"]);
    const aligned = alignNames(one, other);
    expect([...aligned].map((at) => (at < 0 ? undefined : other[at]))).toEqual([
      undefined,
      { pair: 0, name: "b" },
      { pair: 0, name: "10" },
      { pair: 1, name: "a" },
      undefined,
    ]);
    expect([...alignNames([], one)]).toEqual([]);
    expect([...alignNames(one, [])]).toEqual([-1, -1, -1, -1, -1]);
  });
});

describe("many names", () => {
  const layers = (...parts: string[]) =>
    Array.from({ length: 32 }, (_, layer) => parts.map((part) => `model.layers.${layer}.${part}`)).flat();

  it("are told with their numbers collapsed, and what differs in one part together", () => {
    const projections = ["q_proj", "k_proj", "v_proj"].map((name) => `self_attn.${name}.weight`);
    expect(collapseNames(layers(...projections))).toBe("model.layers.*.self_attn.{k,q,v}_proj.weight (96)");
    expect(collapseNames(["lm_head.weight"])).toBe("lm_head.weight (1)");
    expect(collapseNames(["a.weight", "a.bias"])).toBe("a.{bias,weight} (2)");
  });

  it("are the most frequent first, and the rest is counted", () => {
    const names = [...layers("mlp.up.weight"), "a", "b.c", "d.e.f", "g.h.i.j"];
    expect(collapseNames(names)).toBe(
      "model.layers.*.mlp.up.weight (32), a (1), b.c (1), d.e.f (1) and 1 more",
    );
  });

  it("keep words whole that only end alike", () => {
    expect(collapseNames(["x.overweight", "x.weight"])).toBe("x.{overweight,weight} (2)");
  });
});
