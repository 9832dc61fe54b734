import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-diff-"));
afterAll(() => rmSync(folder, { recursive: true }));
const examples = join(import.meta.dirname, "../../examples/specs");
const llama = join(examples, "llama-3-8b.yaml");
const changed = join(folder, "changed.yaml");
const saved = join(folder, "saved.tbplan");

/** Llama to an engine of twice the ranks, with up_proj cut along its inputs too, and half of the network. */
beforeAll(async () => {
  copyFileSync(join(examples, "llama-3-8b.json"), join(folder, "llama-3-8b.json"));
  const text = readFileSync(llama, "utf8")
    .replace("mesh: [4], ranks: 8..11", "mesh: [8], ranks: 8..15")
    .replace("(q|k|v|gate|up)_proj", "(q|k|v|gate)_proj")
    .replace("(o|down)_proj", "(o|down|up)_proj")
    .replace("networkMBps: 50000", "networkMBps: 25000");
  writeFileSync(changed, text);
  await runCli("plan", llama, "--save", saved);
});

describe("diff", () => {
  test("says that plans are equal, whether of a spec or saved", async () => {
    const { digest } = JSON.parse((await runCli("plan", llama, "--json")).stdout);
    const result = await runCli("diff", saved, llama, "--exit-code");
    expect(result).toEqual({
      code: 0,
      stdout: `${saved} -> ${llama}\n\n  no difference: both plan to ${digest}\n`,
      stderr: "",
    });
    const markdown = await runCli("diff", saved, llama, "--markdown");
    expect(markdown.stdout).toContain(`None: both plan to \`${digest}\`.`);
  });

  test("shows what changed of tensors, options, ranks and links, by how many bytes", async () => {
    const { code, stdout, stderr } = await runCli("diff", saved, changed);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/^ +between ranks +15\.0 GiB +15\.0 GiB +\+2\.03 MiB$/m);
    expect(stdout).toMatch(/^ +predicted +\S+ ms +\S+ ms +[+-]\d+\.\d %$/m);
    expect(stdout).toContain("\nOptions\n  topology.networkMBps: 50000 -> 25000\n");
    expect(stdout).toContain("\nTensors  291 changed, 0 not\n");
    expect(stdout).toContain(`
  changed: 32 tensors, the first model.layers.0.mlp.up_proj.weight
    target placements  [S(0)] -> [S(1)]
    target mesh        4 (8..11) -> 8 (8..15)
    delivered          3.50 GiB
`);
    expect(stdout).toContain("    delivered          2.03 MiB -> 4.06 MiB (+2.03 MiB)\n");
    expect(stdout).toMatch(/^ +15 +0 B +1\.87 GiB +\+1\.87 GiB +\S+ MiB +\+\S+ MiB$/m);
    expect(stdout).toMatch(/^ +1 +8 +1\.45 GiB +128 MiB +-1\.32 GiB$/m);
    expect(stdout).toMatch(/^ {2}\.\.\. and 48 more \(--json has more\)$/m);
    expect(stdout.split("\n").filter((line) => line.length > 80 && !line.includes(folder))).toEqual([]);
  });

  test("shows strategies and their reasons where they change", async () => {
    const striped = join(folder, "striped.yaml");
    copyFileSync(join(examples, "llama-3-8b.json"), join(folder, "llama-3-8b.json"));
    writeFileSync(striped, readFileSync(llama, "utf8").replace("strategy: direct", "strategy: auto"));
    const { stdout } = await runCli("diff", llama, striped);
    expect(stdout).toContain("\n  strategy: direct -> auto\n");
    expect(stdout).toMatch(/^ {4}routing +direct -> striped within hosts \(lowest cost\)$/m);
    expect(stdout).toMatch(/^ {4}routing +direct -> direct \(no replicas\)$/m);
  });

  test("--exit-code ends with 1 where they differ", async () => {
    expect(await runCli("diff", llama, changed, "--exit-code")).toMatchObject({ code: 1, stderr: "" });
  });

  test("--json has every group, rank and link", async () => {
    const { stdout } = await runCli("diff", llama, changed, "--json");
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ before: llama, after: changed, equal: false, unchangedTensors: 0 });
    expect(report.options).toEqual([{ option: "topology.networkMBps", before: 50000, after: 25000 }]);
    expect(report.ranks).toHaveLength(16);
    expect(report.links).toHaveLength(report.changedLinks);
    expect(report.hosts).toEqual([{ from: 0, to: 1, bytes: expect.anything() }]);
    const up = report.tensors.find(({ example }: { example: string }) => example.includes("up_proj"));
    expect(up).toMatchObject({
      count: 32,
      fields: ["target.placements", "target.mesh"],
      before: { target: { placements: ["S(0)"], mesh: [4], ranks: "8..11" } },
      after: { target: { placements: ["S(1)"], mesh: [8], ranks: "8..15" } },
    });
  });

  test("--markdown folds what is long", async () => {
    const { stdout } = await runCli("diff", saved, changed, "--markdown");
    expect(stdout).toContain("<summary>Tensors: 291 changed, 0 not</summary>");
    expect(stdout).toContain(
      "| `model.layers.0.mlp.up_proj.weight` | target placements | `[S(0)] -> [S(1)]` |",
    );
    expect(stdout).toContain("<summary>Links from rank to rank: 64 changes</summary>");
    expect(stdout).toContain("- `topology.networkMBps: 50000 -> 25000`");
    const both = await runCli("diff", saved, changed, "--markdown", "--json");
    expect(both.code).toBe(2);
  });

  test("names the file that it cannot read", async () => {
    const { code, stderr } = await runCli("diff", llama, join(folder, "none.tbplan"));
    expect([code, stderr]).toEqual([
      2,
      expect.stringMatching(/none\.tbplan: no such file or folder \(TB_FILE\)\n$/),
    ]);
  });
});

describe("plan --markdown", () => {
  test("begins with budgets that are exceeded, and folds what is long", async () => {
    const tight = join(folder, "tight.yaml");
    copyFileSync(join(examples, "llama-3-8b.json"), join(folder, "llama-3-8b.json"));
    writeFileSync(
      tight,
      readFileSync(llama, "utf8").replace("rankEgressBytes: 4GiB", "rankEgressBytes: 1GiB"),
    );
    const { code, stdout, stderr } = await runCli("plan", tight, "--markdown");
    expect(code).toBe(1);
    expect(stderr).toMatch(/\(TB_BUDGET\)\n$/);
    expect(stdout).toMatch(/^### Plan of `.*tight\.yaml`\n/);
    expect(stdout).toContain("**1 of 3 budgets exceeded**");
    expect(stdout).toMatch(
      /^\| `rankEgressBytes` \| 1\.00 GiB \| 1\.87 GiB \| `\d+ MiB \(\d+\.\d %\)` \| `rank 0` \|$/m,
    );
    expect(stdout).toContain("| `stagingBytes` | 512 MiB | 62.6 MiB | kept | `rank 0` |");
    expect(stdout).toContain("<summary>Patterns: 7, those with the most bytes first</summary>");
    expect(stdout.indexOf("exceeded")).toBeLessThan(stdout.indexOf("digest"));
  });

  test("says in one line that all budgets are kept", async () => {
    const { code, stdout } = await runCli("plan", llama, "--markdown");
    expect(code).toBe(0);
    expect(stdout).toContain("<summary>3 budgets kept</summary>");
    expect(stdout.length).toBeLessThan(65_536);
  });
});
