import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { loadSpec } from "../../src/model/spec.ts";
import { type Chunk, planTransfer } from "../../src/plan/index.ts";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-plan-"));
afterAll(() => rmSync(folder, { recursive: true }));
const examples = join(import.meta.dirname, "../../examples/specs");
const configs = join(import.meta.dirname, "../model/configs");

/** A small spec whose numbers are easy to say: 4 ranks hold 1 MiB each, two hosts, two targets. */
const small = `version: 1
model: { tensors: [{ name: w, shape: [1024, 1024], dtype: float32 }] }
source: { name: trainer, mesh: [4], ranks: 0..3 }
target: { name: engine, mesh: [2], ranks: 4..5 }
placements: [{ match: w, source: [S(0)], target: [S(0)] }]
strategy: direct
`;

function specFile(text: string): string {
  const path = join(folder, "spec.yaml");
  writeFileSync(path, text);
  return path;
}

/** The cells of the table row that begins with these. */
function row(text: string, ...start: string[]): string[] {
  const pattern = new RegExp(
    `^ +${start.map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&")).join(" +")}(?: |$)`,
  );
  const line = text.split("\n").find((entry) => pattern.test(entry));
  expect(line, `a row that starts with ${start.join(" ")} in\n${text}`).toBeDefined();
  return line!.trim().split(/ {2,}/);
}

describe("plan", () => {
  test("shows the summary, patterns, sides and ranks", async () => {
    const path = specFile(small);
    const { code, stdout, stderr } = await runCli("plan", path);
    expect([code, stderr]).toEqual([0, ""]);
    const { digest } = await planTransfer((await loadSpec(path)).input);
    expect(stdout.split("\n")[0]).toBe(path);
    expect(row(stdout, "source")[1]).toBe("trainer (mesh 4, ranks 0..3)");
    expect(row(stdout, "target")[1]).toBe("engine (mesh 2, ranks 4..5)");
    expect(row(stdout, "digest")).toEqual(["digest", digest]);
    expect(row(stdout, "tensors")[1]).toBe("1, 4.00 MiB at the source, 4.00 MiB at the target");
    expect(row(stdout, "sends")[1]).toBe("4.00 MiB from rank to rank");
    expect(row(stdout, "chunks")[1]).toBe("4 in 4 buckets, 1 wave");
    expect(row(stdout, "balance")[1]).toBe("rank 0 sends most, 1.00 MiB, 1.000 times the mean");
    expect(row(stdout, "1", "1024 x 1024").slice(1, 5)).toEqual([
      "1024 x 1024",
      "float32",
      "[S(0)] -> [S(0)]",
      "4.00 MiB",
    ]);
    const spread = ["1.00 MiB", "1.00 MiB", "1.00 MiB"];
    expect(row(stdout, "trainer", "4", "sent")).toEqual(["trainer", "4", "sent", ...spread]);
    expect(row(stdout, "5", "engine").slice(0, 4)).toEqual(["5", "engine", "0 B", "2.00 MiB"]);
    expect(stdout).not.toMatch(/predicted|verified|Budgets|copied$/m);
    expect(stdout.split("\n").every((line) => line === line.trimEnd())).toBe(true);
    expect(stdout).not.toContain("\u001B");
  });

  test("fits 80 columns, wide patterns too", async () => {
    for (const name of ["deepseek-v3.yaml", "fsdp2-tp.json"]) {
      const { code, stdout } = await runCli("plan", join("examples", "specs", name));
      expect(code).toBe(0);
      expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
    }
  });

  test("predicts a time only where it knows the links", async () => {
    const topology = "topology: { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 50 }\n";
    const { stdout } = await runCli("plan", specFile(small + topology));
    // Ranks 4 and 5 are on another host and receive 2 MiB each, at 100 MB/s.
    expect(stdout.replaceAll(/\n {8,}/g, " ")).toContain(
      "21.0 ms, which no schedule can beat: all that rank 4 receives across hosts; 4.00 MiB across hosts and 0 B within them",
    );
    const near = topology.replace("ranksPerHost: 4", "hosts: [0, 0, 0, 0, 0, 1]");
    const { schedule } = JSON.parse((await runCli("plan", specFile(small + near), "--json")).stdout);
    const busy = (2 ** 21 * 1000) / 100;
    expect(schedule).toMatchObject({
      hostBytes: String(2 ** 21),
      networkBytes: String(2 ** 21),
      makespan: busy + 50_000,
      lowerBound: busy + 50_000,
      busiest: { rank: 5, direction: "in", reach: "network", busy },
    });
  });

  test("says what NCCL is to take, which hands nothing on while the rest still comes", async () => {
    const topology = "topology: { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 50 }\n";
    const replicas = `${small.replace("target: [S(0)]", "target: [R]")}bucketBytes: 64KiB\n${topology}`;
    const striped = await runCli("plan", specFile(replicas.replace("direct", "striped")));
    // 2 MiB across hosts at 100 MB/s, then as much within the host at 1000.
    expect(row(striped.stdout, "over", "NCCL")[1]).toMatch(/^at least about 23\.2 ms, \d % more/);
    expect((await runCli("plan", specFile(replicas))).stdout).not.toContain("NCCL");
  });

  test("--verify proves the plan first", async () => {
    const { code, stdout } = await runCli("plan", specFile(small), "--verify");
    expect(code).toBe(0);
    expect(row(stdout, "verified")[1]).toMatch(/exactly once/);
  });

  test("--json holds digest, sides, statistics, as one object", async () => {
    const path = specFile(small);
    const { code, stdout } = await runCli("plan", path, "--json", "--verify");
    expect(code).toBe(0);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({
      spec: path,
      source: { name: "trainer", mesh: [4], ranks: [0, 1, 2, 3] },
      target: { name: "engine", mesh: [2], ranks: [4, 5] },
      verified: true,
      schedule: null,
      budgets: { exceeded: [] },
    });
    expect(report.digest).toMatch(/^[0-9a-f]{64}$/);
    expect(report.stats.bytes.send).toBe(String(2 ** 22));
  });

  test("--chunks lists what the plan has, with 64-bit numbers as text", async () => {
    const path = specFile(small);
    const plan = await planTransfer((await loadSpec(path)).input);
    const parse = (stdout: string) =>
      stdout
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as Record<string, unknown>);
    const text = (chunk: Chunk) =>
      JSON.parse(JSON.stringify(chunk, (_, value) => (typeof value === "bigint" ? String(value) : value)));
    const all = await runCli("plan", path, "--chunks");
    expect(parse(all.stdout)).toEqual([...plan.chunks()].map(text));
    const own = await runCli("plan", path, "--chunks", "--rank", "4");
    expect(parse(own.stdout)).toEqual([...plan.chunks({ rank: 4 })].map(text));
    expect(parse(own.stdout)[0]).toMatchObject({
      kind: "send",
      dstRank: 4,
      lengths: [expect.stringMatching(/^\d+$/), "1024"],
    });
    const both = await runCli("plan", path, "--chunks", "--json");
    expect([both.code, both.stderr]).toEqual([
      2,
      "error: option '--chunks' cannot be used with option '--json'\n",
    ]);
  });

  test("--rank shows what one rank exchanges with whom", async () => {
    const path = specFile(small);
    const { stdout } = await runCli("plan", path, "--rank", "4");
    expect(stdout).toContain(`rank 4 of engine in ${path}`);
    expect(row(stdout, "receives")[1]).toBe("2.00 MiB from 2 ranks");
    expect(row(stdout, "sends")[1]).toBe("0 B to 0 ranks");
    expect(row(stdout, "from", "0")).toEqual(["from", "0", "cross", "1", "1.00 MiB"]);
    expect(row(stdout, "from", "1").at(-1)).toBe("1.00 MiB");
    const { rank } = JSON.parse((await runCli("plan", path, "--rank", "1", "--json")).stdout);
    expect(rank).toMatchObject({
      sides: ["trainer"],
      exchanges: [{ direction: "to", peer: 4, bytes: String(2 ** 20) }],
    });
    const none = await runCli("plan", path, "--rank", "6");
    expect([none.code, none.stderr]).toEqual([2, `error: rank 6 is on neither side of ${path} (TB_MESH)\n`]);
  });

  test("a budget that is exceeded is exit code 1, with how much", async () => {
    const budget = "budget: { rankEgressBytes: 512KiB, stagingBytes: 1GiB, imbalance: 1.5 }\n";
    const path = specFile(small + budget);
    const { code, stdout, stderr } = await runCli("plan", path);
    expect(code).toBe(1);
    expect(row(stdout, "rankEgressBytes")).toEqual([
      "rankEgressBytes",
      "512 KiB",
      "1.00 MiB",
      "512 KiB (100.0 %)",
      "rank 0",
    ]);
    expect(stdout.match(/^Budgets exceeded$/m)).not.toBeNull();
    expect(stdout).not.toMatch(/^ +imbalance/m);
    expect(stderr).toBe(`error: the plan exceeds what ${path} allows: rankEgressBytes (TB_BUDGET)\n`);
    const json = await runCli("plan", path, "--json");
    expect(json.code).toBe(1);
    expect(JSON.parse(json.stdout).budgets.exceeded).toMatchObject([
      { budget: "rankEgressBytes", limit: 2 ** 19, found: 2 ** 20 },
    ]);
    const kept = specFile(small + budget.replace("512KiB", "1MiB"));
    expect((await runCli("plan", kept)).code).toBe(0);
  });

  test("an imbalance is measured over the source's ranks", async () => {
    const uneven = small.replace("[1024, 1024]", "[5, 1024]");
    // Rows 2, 2, 1, 0 of 5: the busiest sends 2 of a mean of 1.25.
    const { code, stdout } = await runCli("plan", specFile(`${uneven}budget: { imbalance: 1.5 }\n`));
    expect(code).toBe(1);
    expect(row(stdout, "imbalance").slice(0, 4)).toEqual(["imbalance", "1.500", "1.600", "0.100 (6.7 %)"]);
  });

  test("what the planner refuses is bad input", async () => {
    const partial = specFile(small.replace("target: [S(0)]", "target: [P(sum)]"));
    const { code, stderr } = await runCli("plan", partial);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^error: .*\(TB_PARTIAL_TARGET\)\n$/);
    const many = await runCli("plan", specFile(`${small}maxChunks: 1\n`), "--chunks");
    expect(many.code).toBe(2);
    expect(many.stderr).toMatch(/more than maxChunks \(1\) allows \(TB_PLAN_TOO_LARGE\)\n$/);
  });
});

describe("the examples", () => {
  const specs = readdirSync(examples).filter((name) => name.endsWith(".yaml") || name === "fsdp2-tp.json");

  test("are these", () => {
    expect(specs.sort()).toEqual([
      "deepseek-v3.yaml",
      "fsdp2-tp.json",
      "kimi-k2.yaml",
      "llama-3-8b.yaml",
      "qwen3-30b-a3b.yaml",
    ]);
  });

  // An example without a topology predicts nothing.
  const withTopology = ["kimi-k2.yaml", "llama-3-8b.yaml", "qwen3-30b-a3b.yaml"];

  test.each(
    specs,
  )("%s is planned, keeps its budgets, and takes 1.1 times what no schedule can beat at most", async (name) => {
    const { code, stdout, stderr } = await runCli("plan", join(examples, name));
    expect([code, stderr]).toEqual([0, ""]);
    expect(row(stdout, "digest")[1]).toMatch(/^[0-9a-f]{64}$/);
    const predicted = /^ {2}predicted +[\d.]+ \S+, (?:which|([\d.]+) % over) /m.exec(stdout);
    expect(predicted !== null).toBe(withTopology.includes(name));
    expect(Number(predicted?.[1] ?? 0)).toBeLessThan(10);
  });

  test("llama-3-8b.yaml moves each element once, in the target's type, and balanced", async () => {
    const { stats } = JSON.parse((await runCli("plan", join(examples, "llama-3-8b.yaml"), "--json")).stdout);
    const norms = 65 * 4096; // go to each of 4 ranks
    expect(stats.bytes.send).toBe(String((8_030_261_248 + 3 * norms) * 2));
    expect(stats.imbalance).toBe(1);
  });

  test("use the configs that the tests check against the published models", () => {
    for (const name of readdirSync(examples).filter((entry) =>
      /^(llama|qwen|deepseek).*\.json$/.test(entry),
    )) {
      expect(readFileSync(join(examples, name), "utf8")).toBe(readFileSync(join(configs, name), "utf8"));
    }
  });
});

describe("docs/spec.md", () => {
  const text = readFileSync(join(import.meta.dirname, "../../docs/spec.md"), "utf8");
  const snippets = [...text.matchAll(/```yaml\n(.*?)```/gs)].map((match) => match[1]!);

  test.each(
    snippets.map((snippet, index) => [index, snippet] as const),
  )("snippet %i is planned", async (_, snippet) => {
    copyFileSync(join(examples, "llama-3-8b.json"), join(folder, "llama-3-8b.json"));
    expect(await runCli("plan", specFile(snippet))).toMatchObject({ code: 0, stderr: "" });
  });
});
