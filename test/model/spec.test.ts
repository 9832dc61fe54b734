import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { formatPlacement } from "../../src/layout/index.ts";
import { createSafetensors } from "../../src/model/safetensors.ts";
import { loadSpec, parseSpec, type Spec } from "../../src/model/spec.ts";
import { joinPlacements, parseRanks, parseSize } from "../../src/model/spec-values.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-spec-"));
afterAll(() => rmSync(folder, { recursive: true }));

const base = `version: 1
model:
  tensors:
    - { name: layers.0.experts.0.up, shape: [64, 32], dtype: float32 }
    - { name: layers.0.experts.13.up, shape: [64, 32], dtype: float32 }
    - { name: layers.0.q, shape: [64, 32], dtype: float32 }
    - { name: layers.0.norm, shape: [64], dtype: float32 }
source: { name: trainer, mesh: [2, 2], ranks: 0..3 }
target: { name: inference, mesh: [4], ranks: [4..6, 9] }
placements:
  - match: 'experts\\.(\\d+)\\.'
    source: [S(0), R]
    target: { placements: [R], select: { dim: 0, index: $1, of: 16 } }
  - { match: '\\.q$', source: [S(0), S(0)], target: [S(1)] }
  - { match: '.*', source: [S(0), R], target: [R] }
`;

const parse = (text: string): Promise<Spec> => parseSpec(text, join(folder, "spec.yaml"));
/** The spec with one piece of its text replaced. */
const edit = (from: string | RegExp, to: string): string => {
  const text = base.replace(from, () => to);
  expect(text).not.toBe(base);
  return text;
};

async function failure(text: string): Promise<TensorBusError> {
  const error = await parse(text).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(TensorBusError);
  return error as TensorBusError;
}

describe("a spec", () => {
  test("becomes the input of a plan", async () => {
    const { input, source, target, budget } = await parse(base);
    expect([source.name, [...source.mesh.ranks]]).toEqual(["trainer", [0, 1, 2, 3]]);
    expect([target.name, [...target.mesh.ranks]]).toEqual(["inference", [4, 5, 6, 9]]);
    expect(budget).toEqual({});
    expect(Object.keys(input.pairs)).toEqual(["[S(0), R] -> [R]", "[S(0), S(0)] -> [S(1)]"]);
    const pair = input.pairs["[S(0), S(0)] -> [S(1)]"]!;
    expect(pair.source.placements.map(formatPlacement)).toEqual(["S(0)", "S(0)"]);
    expect(pair.target.mesh).toBe(target.mesh);
    expect(input.tensors).toEqual([
      expect.objectContaining({
        name: "layers.0.experts.0.up",
        pair: "[S(0), R] -> [R]",
        target: { select: { dim: 0, index: 0, of: 16 } },
      }),
      expect.objectContaining({ target: { select: { dim: 0, index: 13, of: 16 } } }),
      {
        name: "layers.0.q",
        pair: "[S(0), S(0)] -> [S(1)]",
        shape: [64, 32],
        dtype: "float32",
        targetDtype: "float32",
      },
      {
        name: "layers.0.norm",
        pair: "[S(0), R] -> [R]",
        shape: [64],
        dtype: "float32",
        targetDtype: "float32",
      },
    ]);
  });

  test("hands the planner's options on, with sizes in bytes", async () => {
    const { input, budget } = await parse(`${base}
targetDtype: bfloat16
bucketBytes: 8MiB
bucketsInFlight: 3
peersInFlight: 2
strategy: auto
maxChunks: 1000
topology: { ranksPerHost: 8, hostMBps: 450000, networkMBps: 50000, latencyUs: 5 }
budget: { rankEgressBytes: 20GiB, stagingBytes: 256MiB, imbalance: 1.05 }
`);
    expect(input).toMatchObject({
      bucketBytes: 8 * 2 ** 20,
      bucketsInFlight: 3,
      peersInFlight: 2,
      strategy: "auto",
      maxChunks: 1000,
      topology: { ranksPerHost: 8, hostMBps: 450000, networkMBps: 50000, latencyUs: 5 },
    });
    expect(input.tensors.every(({ targetDtype }) => targetDtype === "bfloat16")).toBe(true);
    expect(budget).toEqual({ rankEgressBytes: 20 * 2 ** 30, stagingBytes: 256 * 2 ** 20, imbalance: 1.05 });
  });

  test("gives the target type by rule; what no rule takes keeps its own", async () => {
    const { input } = await parse(`${base}
targetDtype:
  - { match: norm, dtype: float64 }
  - { match: experts, dtype: float8_e4m3fn }
`);
    const types = ["float8_e4m3fn", "float8_e4m3fn", "float32", "float64"];
    expect(input.tensors.map(({ targetDtype }) => targetDtype)).toEqual(types);
  });

  test("names how strided shards read, for a side and for a rule", async () => {
    const text = edit("mesh: [2, 2],", "mesh: [2, 2], stridedShard: order,").replace(
      "source: [S(0), S(0)]",
      "source: { placements: [SS(0,2), S(0)], stridedShard: split }",
    );
    const { input } = await parse(text);
    const pair = input.pairs["[SS(0,2), S(0)] -> [S(1)]"]!;
    expect(pair.source.stridedShard).toBe("order");
    expect(input.tensors[2]).toMatchObject({ source: { stridedShard: "split" } });
  });

  test("cuts by size, in placements as YAML cuts them and in selections", async () => {
    const text = edit("[S(0), S(0)], target: [S(1)]", "[S(0), R], target: [S(1;16, 0,8,8)]").replace(
      "of: 16 }",
      "of: 16, sizes: [1, 12, 0, 3] }",
    );
    const { input } = await parse(text);
    expect(Object.keys(input.pairs)).toContain("[S(0), R] -> [S(1;16,0,8,8)]");
    const selects = input.tensors.map(({ target }) => target?.select);
    expect(selects).toContainEqual({ dim: 0, index: 13, of: 16, sizes: [1, 12, 0, 3] });
  });

  test("without ranks counts the source from 0 and the target from there on, or both from 0 where colocated", async () => {
    const text = base.replace(", ranks: 0..3", "").replace(", ranks: [4..6, 9]", "");
    expect([...(await parse(text)).target.mesh.ranks]).toEqual([4, 5, 6, 7]);
    expect([...(await parse(`${text}colocated: true`)).target.mesh.ranks]).toEqual([0, 1, 2, 3]);
  });

  test("is JSON as well, and finds its model beside it", async () => {
    const model = join(folder, "model.safetensors");
    await using writer = await createSafetensors(model, [{ name: "w", shape: [4, 4], dtype: "bfloat16" }]);
    await writer.write("w", new Uint8Array(32));
    await writer.finish();
    const path = join(folder, "spec.json");
    const json = {
      version: 1,
      model: { safetensors: "model.safetensors" },
      source: { mesh: [2] },
      target: { mesh: [2] },
      placements: [{ match: "w", source: ["S(0)"], target: ["S(1)"] }],
    };
    writeFileSync(path, JSON.stringify(json));
    const { input } = await loadSpec(path);
    expect(input.tensors).toMatchObject([{ name: "w", shape: [4, 4], dtype: "bfloat16" }]);
  });
});

describe("a bad spec names file, line, path and values", () => {
  const select = "target: { placements: [R], select: { dim: 0, index: $1, of: 16 } }";
  test.each<[string, string, RegExp]>([
    ["an unknown key", `${base}sorce: 1\n`, /spec\.yaml:16: sorce: unknown key$/],
    [
      "an unknown key inside",
      edit("dim: 0,", "dim: 0, size: 3,"),
      /:13: placements\[0\]\.target\.select\.size: unknown key$/,
    ],
    ["another version", edit("version: 1", "version: 2"), /:1: version: must be 1, not 2$/],
    ["a missing side", edit(/target: \{ name.*\n/, ""), /target: must be a map, and is missing$/],
    ["a key twice", `${base}version: 1\n`, /spec\.yaml:16: not valid YAML: Map keys must be unique/],
    ["no YAML", "version: [1", /not valid YAML/],
    ["no map", "- 1", /spec\.yaml:1: must be a map, not \[1\]$/],
    [
      "an unknown placement",
      edit("[S(0), S(0)]", "[S(0), T(0)]"),
      /:14: placements\[1\]\.source: not a placement: "T\(0\)"/,
    ],
    ["an unknown operator", edit("[S(0), S(0)]", "[S(0), P(mul)]"), /unknown Partial operator "mul"/],
    [
      "a count of placements that does not fit the mesh",
      edit("target: [S(1)]", "target: [S(1), R]"),
      /:14: placements\[1\]\.target: 2 placements \[S\(1\), R\] for the 1 dimensions of inference's mesh 4/,
    ],
    ["a broken expression", edit("'.*'", "'('"), /:15: placements\[2\]\.match: Invalid regular expression/],
    [
      "a rule that matches nothing",
      edit("\\.q$", "\\.z$"),
      /:14: placements\[1\]\.match: \\\.z\$ matches none of the 4 tensors$/,
    ],
    [
      "a rule that others hide",
      `${base}  - { match: norm, source: [R, R], target: [R] }\n`,
      /earlier rules take all 1 tensors that norm matches/,
    ],
    [
      "tensors of too few dimensions for their rule",
      edit(/'\\\.q\$'.*\n.*/, "'.*', source: [S(1), R], target: [S(1)] }"),
      /:14: placements\[1\]\.source: cuts a dimension that 1 of the 2 tensors that it takes do not have: layers\.\*\.norm \(1\)\. Add a rule for them, such as \{match: "norm", source: \[R,R\], target: \[R\]\} before this one$/,
    ],
    [
      "a dimension that none of a rule's tensors has",
      edit("[S(0), S(0)]", "[S(2), S(0)]"),
      /:14: placements\[1\]\.source: cuts a dimension that no tensor that it takes has: they have 2 at the most, numbered from 0$/,
    ],
    [
      "tensors without a rule",
      edit("'.*'", "norm2|q"),
      /:10: placements: 1 of 4 tensors match no rule: layers\.0\.norm$/,
    ],
    [
      "a capture that is no number",
      edit("experts\\.(\\d+)\\.", "(experts)"),
      /index: \$1 captured "experts" in tensor layers\.0\.experts\.0\.up, not a number/,
    ],
    ["a capture that is not there", edit(select, select.replace("$1", "$2")), /\$2 captured nothing/],
    [
      "an index that is no number",
      edit(select, select.replace("$1", "first")),
      /:13: .*select\.index: must be a number or a capture such as \$1, not "first"/,
    ],
    [
      "an index beyond",
      edit("of: 16", "of: 13"),
      /select: index 13 of 13 for tensor layers\.0\.experts\.13\.up/,
    ],
    ["a dimension beyond", edit("dim: 0,", "dim: 1,"), /inference's mesh has no dimension 1/],
    [
      "overlapping ranks",
      edit("[4..6, 9]", "3..6"),
      /:9: target\.ranks: rank 3 is on both sides; .*colocated: true/,
    ],
    ["too few ranks", edit("0..3", "0..2"), /:8: source\.ranks: 3 ranks for a mesh of 2 x 2/],
    ["a rank twice", edit("[4..6, 9]", "[4..6, 4]"), /target\.ranks: rank 4 appears twice/],
    [
      "ranks backwards",
      edit("0..3", "3..0"),
      /source\.ranks: must be ranks such as 0\.\.31 or a list of them, not "3\.\.0"/,
    ],
    [
      "a mesh of nothing",
      edit("mesh: [2, 2], ranks: 0..3", "mesh: [0]"),
      /source\.mesh: a mesh dimension cannot have the size 0/,
    ],
    [
      "a huge mesh",
      edit("mesh: [2, 2], ranks: 0..3", "mesh: [1048576, 1048576]"),
      /source\.mesh: a mesh can have at most 1048576 ranks/,
    ],
    [
      "a size without a unit",
      `${base}bucketBytes: 8 potatoes\n`,
      /:16: bucketBytes: must be a size such as "8MiB" or a number of bytes, not "8 potatoes"/,
    ],
    ["an unknown type", `${base}targetDtype: int4\n`, /:16: targetDtype: /],
    [
      "a type rule that matches nothing",
      `${base}targetDtype: [{ match: zzz, dtype: int8 }]\n`,
      /targetDtype\[0\]\.match: zzz matches none/,
    ],
    ["an unknown budget", `${base}budget: { egress: 1 }\n`, /budget\.egress: unknown key/],
    ["a budget below perfect balance", `${base}budget: { imbalance: 0.5 }\n`, /budget\.imbalance: /],
    [
      "a topology without hosts",
      `${base}topology: { hostMBps: 1, networkMBps: 1, latencyUs: 1 }\n`,
      /topology: give exactly one of ranksPerHost and hosts/,
    ],
    [
      "a fraction of a link",
      `${base}topology: { ranksPerHost: 8, hostMBps: 1.5, networkMBps: 1, latencyUs: 1 }\n`,
      /topology\.hostMBps: /,
    ],
    [
      "a tensor twice",
      edit("layers.0.norm,", "layers.0.q,"),
      /:7: model\.tensors\[3\]\.name: layers\.0\.q appears twice/,
    ],
    [
      "two models",
      edit("model:", "model:\n  config: x.json"),
      /:2: model: give exactly one of config, safetensors and tensors/,
    ],
    [
      "an option of another model",
      edit("model:", "model:\n  mtp: true"),
      /:3: model\.mtp: belongs to a model's config/,
    ],
    ["a shape of another kind", edit("shape: [64],", "shape: 64,"), /:7: model\.tensors\[3\]\.shape: /],
  ])("%s", async (_, text, message) => {
    const error = await failure(text);
    expect(error.message).toMatch(message);
    expect(error).toMatchObject({
      code: "TB_SPEC",
      exitCode: 2,
      details: { file: join(folder, "spec.yaml") },
    });
    expect(error.message).not.toContain("\n");
  });

  test("a missing model is named", async () => {
    const error = await failure(edit(/model:\n(.*\n){5}/, "model: { config: none.json }\n"));
    expect(error).toMatchObject({ code: "TB_FILE" });
    expect(error.message).toContain(join(folder, "none.json"));
  });

  test("aliases that would grow without bound are refused", async () => {
    const lines = Array.from({ length: 12 }, (_, i) => `a${i + 1}: &a${i + 1} [${`*a${i},`.repeat(9)}]`);
    const error = await failure(`a0: &a0 [1]\n${lines.join("\n")}\n`);
    expect(error.code).toBe("TB_SPEC");
  });
});

describe("values", () => {
  test("sizes", () => {
    expect(["8MiB", "8 MiB", "1.5KiB", "2GB", "7", 4096, "3B", "1TiB"].map(parseSize)).toEqual([
      8 * 2 ** 20,
      8 * 2 ** 20,
      1536,
      2e9,
      7,
      4096,
      3,
      2 ** 40,
    ]);
    for (const bad of [
      "",
      "MiB",
      "-1",
      -1,
      1.5,
      "1.3B",
      "8mib",
      "9e9TiB",
      "99999999TiB",
      null,
      [],
      "constructor",
      "1toString",
    ]) {
      expect(parseSize(bad)).toBeUndefined();
    }
  });

  test("ranks", () => {
    expect(parseRanks("0..3")).toEqual([0, 1, 2, 3]);
    expect(parseRanks(["2 .. 3", 7, "5"])).toEqual([2, 3, 7, 5]);
    expect(parseRanks(4)).toEqual([4]);
    for (const bad of ["", "a", "1..", "3..1", -1, 1.5, "0..99999999999", [null], {}])
      expect(parseRanks(bad)).toBeUndefined();
  });

  test("placements that YAML cut at their commas", () => {
    expect(joinPlacements(["SS(0", "2)", "R"])).toEqual(["SS(0,2)", "R"]);
    expect(joinPlacements(["S(0)", "R"])).toEqual(["S(0)", "R"]);
    expect(joinPlacements(["S(0;3", 3, 2, "2)", "R"])).toEqual(["S(0;3,3,2,2)", "R"]);
  });
});
