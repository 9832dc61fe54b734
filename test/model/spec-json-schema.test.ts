import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { Ajv } from "ajv";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { TensorBusError } from "../../src/errors.ts";
import { parseSpec } from "../../src/model/spec.ts";
import { specJsonSchema } from "../../src/model/spec-json-schema.ts";

fc.configureGlobal({ seed: 20_261 });

const root = join(import.meta.dirname, "../..");
const file = join(root, "schema/spec.schema.json");
const examples = join(root, "examples/specs");
const specFiles = readdirSync(examples).filter((name) => name.endsWith(".yaml") || name === "fsdp2-tp.json");

const check = new Ajv({ allErrors: true, strict: true, strictRequired: false }).compile(
  JSON.parse(readFileSync(file, "utf8")),
);

const spec = {
  version: 1,
  model: { tensors: [{ name: "w", shape: [4, 4], dtype: "float32" }] },
  source: { mesh: [2] },
  target: { mesh: [2] },
  placements: [{ match: "w", source: ["S(0)"], target: ["R"] }],
};

async function isTaken(value: object): Promise<boolean> {
  try {
    await parseSpec(JSON.stringify(value), "spec.json");
    return true;
  } catch (error) {
    if (error instanceof TensorBusError) return false;
    throw error;
  }
}

describe("the JSON Schema of specs", () => {
  test("is what the schema that specs are read by gives now (npm run build writes it)", () => {
    expect(JSON.parse(readFileSync(file, "utf8"))).toEqual(specJsonSchema());
  });

  test.each(specFiles)("takes the example %s, which names it", (name) => {
    const text = readFileSync(join(examples, name), "utf8");
    expect(check(parse(text)), JSON.stringify(check.errors)).toBe(true);
    const named = /\$schema(?:=|": ")([^"\s]+)/.exec(text)![1]!;
    expect(resolve(examples, named)).toBe(file);
  });

  test("takes what the documentation shows", () => {
    const text = readFileSync(join(root, "docs/spec.md"), "utf8");
    const shown = [...text.matchAll(/```yaml\n(version.*?)```/gs)].map((match) => match[1]!);
    expect(shown.length).toBeGreaterThan(1);
    for (const snippet of shown) expect(check(parse(snippet)), JSON.stringify(check.errors)).toBe(true);
  });

  test.each<[string, object]>([
    ["a misspelt key", { bucketByte: 4096 }],
    ["another version", { version: 2 }],
    ["no model", { model: {} }],
    ["two models", { model: { ...spec.model, config: "config.json" } }],
    ["a config's key for tensors", { model: { ...spec.model, mtp: true } }],
    ["an unknown type", { targetDtype: "float" }],
    ["an unknown type in a rule", { targetDtype: [{ match: "w", dtype: "float" }] }],
    ["a size with an unknown unit", { bucketBytes: "8 megabytes" }],
    ["a negative size", { bucketBytes: -1 }],
    ["ranks that are no range", { source: { mesh: [2], ranks: "0-1" } }],
    ["a mesh of fractions", { source: { mesh: [0.5] } }],
    ["a list of strategies", { strategy: ["auto"] }],
    ["no rules", { placements: [] }],
    ["placements that are none", { placements: [{ match: "w", source: ["X(0)"], target: ["R"] }] }],
    [
      "a contribution by an unknown operator",
      { placements: [{ match: "w", source: ["P(mean)"], target: ["R"] }] },
    ],
    ["a side that is a word", { placements: [{ match: "w", source: "S(0)", target: ["R"] }] }],
    [
      "a selection without its size",
      {
        placements: [
          { match: "w", source: ["R"], target: { placements: ["R"], select: { dim: 0, index: 0 } } },
        ],
      },
    ],
    ["a topology without hosts", { topology: { hostMBps: 1, networkMBps: 1, latencyUs: 0 } }],
    ["an imbalance below 1", { budget: { imbalance: 0.5 } }],
    ["an unknown budget", { budget: { cost: 1 } }],
  ])("rejects %s, as the reader does", async (_, change) => {
    expect(check(spec), JSON.stringify(check.errors)).toBe(true);
    expect(await isTaken(spec)).toBe(true);
    expect(check({ ...spec, ...change })).toBe(false);
    expect(await isTaken({ ...spec, ...change })).toBe(false);
  });

  test("takes whatever the reader takes", async () => {
    const values = fc.oneof(
      fc.constantFrom<unknown>(
        ...[
          "8MiB",
          " 1.5 GB ",
          "7",
          "0..3",
          " 2 .. 5 ",
          "$1",
          "R",
          "Replicate()",
          "Shard(dim=0)",
          "P",
          "Partial()",
        ],
        ...[
          "P(reduce_op=max)",
          "SS(0,2)",
          "_StridedShard(dim=0, sf=2)",
          "auto",
          "order",
          "bfloat16",
          "",
          0,
          1,
          3,
          2.5,
        ],
        ...[
          -1,
          true,
          null,
          [],
          {},
          ["SS(0", "2)", "R"],
          ["S(0;3", 0, "1)"],
          [0, "1..2"],
          ["S(-1)"],
          { placements: ["R"] },
        ],
        { placements: ["R"], select: { dim: 0, index: "$1", of: 4 } },
        { placements: ["R"], select: { dim: 0, index: 1, of: 4, sizes: [3, 1] } },
        [{ match: "w", dtype: "int8" }],
      ),
      fc.jsonValue(),
    );
    let taken = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.nat(),
        values,
        fc.option(fc.constantFrom("mesh", "ranks", "bucketBytes")),
        async (at, value, key) => {
          const changed = structuredClone(spec) as Record<string, unknown>;
          const places = placesOf(changed, [changed]);
          const [holder, name] = places[at % places.length]!;
          holder[key ?? name] = value;
          if (!(await isTaken(changed))) return;
          taken++;
          expect(check(changed), `${JSON.stringify(changed)}: ${JSON.stringify(check.errors)}`).toBe(true);
        },
      ),
      { numRuns: 500 },
    );
    expect(taken).toBeGreaterThan(100);
  });

  test("explains every key of a spec", () => {
    const unexplained: string[] = [];
    const visit = (path: string, schema: { properties?: Record<string, object> }) => {
      for (const [key, value] of Object.entries(schema.properties ?? {})) {
        if (!("description" in value)) unexplained.push(`${path}.${key}`);
        visit(`${path}.${key}`, value);
      }
    };
    visit("spec", specJsonSchema() as { properties: Record<string, object> });
    expect(unexplained).toEqual([]);
  });

  test("is shipped under the name that the documentation gives", () => {
    const { exports, files } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    expect(resolve(root, exports["./spec.schema.json"])).toBe(file);
    expect(files).toContain(dirname("schema/spec.schema.json"));
  });
});

type Holder = Record<string, unknown>;

/** Every key of every map of a value, with the map, and keys that a spec may have besides. */
function placesOf(value: unknown, [top]: [Holder]): [Holder, string][] {
  if (typeof value !== "object" || value === null) return [];
  const own = Object.keys(value).map((key): [Holder, string] => [value as Holder, key]);
  const more = ["targetDtype", "strategy", "topology", "budget", "maxChunks", "colocated", "bucketsInFlight"];
  const missing = value === top ? more.map((key): [Holder, string] => [top, key]) : [];
  return [...own, ...missing, ...Object.values(value).flatMap((entry) => placesOf(entry, [top]))];
}
