import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { loadSpec } from "../../src/model/spec.ts";
import { type Plan, planTransfer } from "../../src/plan/index.ts";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-budgets-"));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, "spec.yaml");

/** Three source ranks, uneven, on two hosts; the targets on one of these and on a third. Replicas exchange stripes. */
const spec = `version: 1
model: { tensors: [{ name: w, shape: [1000, 256], dtype: float32 }, { name: v, shape: [90], dtype: float32 }] }
source: { mesh: [3], ranks: 0..2 }
target: { mesh: [2], ranks: 3..4 }
placements: [{ match: '.', source: [S(0)], target: [R] }]
strategy: striped
topology: { hosts: [0, 0, 1, 1, 2], hostMBps: 1000, networkMBps: 100, latencyUs: 50 }
`;

async function run(budget: object | string) {
  const text = typeof budget === "string" ? budget : `budget: ${JSON.stringify(budget)}\n`;
  writeFileSync(path, spec + text);
  const { code, stdout, stderr } = await runCli("plan", path, "--json");
  return { code, stderr, checked: code === 2 ? [] : JSON.parse(stdout).budgets.checked };
}

async function planOf(): Promise<Plan> {
  writeFileSync(path, spec);
  return planTransfer((await loadSpec(path)).input);
}

/** The most of something between any two ends, from all buckets' chunks, one by one. */
function mostBetween(plan: Plan, keyOf: (rank: number) => number): number {
  const sums = new Map<string, number>();
  for (const { srcRank, dstRank, bytes } of plan.chunks()) {
    const [from, to] = [keyOf(srcRank), keyOf(dstRank)];
    if (from === to) continue;
    sums.set(`${from} ${to}`, (sums.get(`${from} ${to}`) ?? 0) + Number(bytes));
  }
  return Math.max(...sums.values());
}

describe("a budget", () => {
  test("of each kind is compared with what the plan has", async () => {
    const plan = await planOf();
    const { ranks, imbalance } = plan.stats();
    const { makespan, ratio } = plan.schedule()!;
    const most = (key: "sent" | "received" | "stagingBytes") =>
      Math.max(...ranks.map((one) => Number(one[key])));
    const hosts = [0, 0, 1, 1, 2];
    const expected = {
      rankEgressBytes: most("sent"),
      rankIngressBytes: most("received"),
      rankLinkBytes: mostBetween(plan, (rank) => rank),
      hostLinkBytes: mostBetween(plan, (rank) => hosts[rank]!),
      stagingBytes: most("stagingBytes"),
      imbalance,
      predictedSeconds: makespan / 1e9,
      lowerBoundRatio: ratio,
      digest: plan.digest,
    };
    const kept = await run(expected);
    expect(kept).toMatchObject({ code: 0, stderr: "" });
    expect(
      kept.checked.map(({ budget, found }: { budget: string; found: unknown }) => [budget, found]),
    ).toEqual(Object.entries(expected));
    // Each by itself, a little less than the plan has.
    for (const [name, found] of Object.entries(expected)) {
      const least = name === "imbalance" || name === "lowerBoundRatio" ? 1 : 0;
      const less = typeof found === "string" ? found.replace(/./g, "0") : Math.max(least, found * 0.99);
      if (less === found) continue; // what is perfect cannot be less
      const limit = name.endsWith("Bytes") ? Math.floor(less as number) : less;
      const { code, stderr, checked } = await run({ ...expected, [name]: limit });
      expect(code, name).toBe(1);
      expect(stderr).toBe(`error: the plan exceeds what ${path} allows: ${name} (TB_BUDGET)\n`);
      expect(checked.filter(({ exceeded }: { exceeded: boolean }) => exceeded)).toMatchObject([
        { budget: name, limit, found },
      ]);
    }
  });

  test("says where the most is, in a table of what is exceeded by how much", async () => {
    const { digest } = await planOf();
    const budget = {
      rankIngressBytes: "1KiB",
      rankLinkBytes: "100KB",
      hostLinkBytes: 0,
      stagingBytes: "1GiB",
      predictedSeconds: 0.005,
      digest: "0".repeat(64),
    };
    await run(budget);
    const { code, stdout } = await runCli("plan", path);
    expect(code).toBe(1);
    const lines = stdout.slice(stdout.indexOf("Budgets exceeded")).trimEnd().split("\n");
    expect(lines[1]!.trim().split(/ {2,}/)).toEqual(["budget", "limit", "found", "over by", "where"]);
    expect(lines.slice(2).map((line) => line.trim().split(/ {2,}/)[0])).toEqual([
      "rankIngressBytes",
      "rankLinkBytes",
      "hostLinkBytes",
      "predictedSeconds",
      "digest",
    ]);
    expect(lines[2]).toMatch(/ 1\.00 KiB +\S+ KiB +\S+ KiB \([\d,]+ x\) +rank [34]$/);
    expect(lines[3]).toMatch(/ 97\.7 KiB .* rank \d -> \d$/);
    expect(lines[4]).toMatch(/ 0 B +(\S+ KiB) +\1 +host \d -> \d$/);
    expect(lines[5]).toMatch(/ 5\.00 ms .* \(\d+\.\d %\)$/);
    expect(lines[6]).toContain(`00000000...  ${digest.slice(0, 8)}...`);
    expect(lines.every((line) => line.length <= 80)).toBe(true);
  });

  test.each([
    ["{ digest: abc }", /budget\.digest: must be text of the form .*, not "abc"/],
    ["{ imbalance: 0.9 }", /budget\.imbalance: must be 1 or more, not 0\.9/],
    ["{ rankLinkBytes: 8 megabytes }", /budget\.rankLinkBytes: must be a size/],
    ["{ seconds: 3 }", /budget\.seconds: unknown key/],
  ])("%s is bad input", async (budget, message) => {
    const { code, stderr } = await run(`budget: ${budget}\n`);
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });

  test.each(["hostLinkBytes", "predictedSeconds", "lowerBoundRatio"])("%s needs a topology", async (name) => {
    writeFileSync(path, `${spec.replace(/topology.*\n/, "")}budget: { ${name}: 1 }\n`);
    const { code, stderr } = await runCli("plan", path);
    expect(code).toBe(2);
    expect(stderr).toBe(`error: ${path}:7: budget.${name}: needs a topology (TB_SPEC)\n`);
  });

  test("of a plan that sends nothing is kept", async () => {
    const still = spec.replace("target: { mesh: [2], ranks: 3..4 }", "target: { mesh: [3], ranks: 0..2 }");
    writeFileSync(
      path,
      `${still.replace("target: [R]", "target: [S(0)]")}colocated: true
budget: { rankEgressBytes: 0, rankLinkBytes: 0, hostLinkBytes: 0, predictedSeconds: 0, lowerBoundRatio: 1 }
`,
    );
    expect(await runCli("plan", path)).toMatchObject({ code: 0, stderr: "" });
  });
});
