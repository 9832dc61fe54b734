import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { describe, expect, it } from "vitest";
import { nodeBundle } from "../scripts/node-bundle.mjs";
import { errorCodes } from "../src/errors.ts";
import { runCli } from "./cli/kit/command-line.ts";

const root = join(import.meta.dirname, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");

describe("the README", () => {
  it("embeds the planner as it says, in ten lines", async () => {
    const [, snippet] = /```ts\n([\s\S]*?)```/.exec(readme)!;
    expect(snippet!.trim().split("\n").length).toBeLessThanOrEqual(12);
    mkdirSync(join(root, "build"), { recursive: true });
    const folder = mkdtempSync(join(root, "build", "readme-"));
    try {
      writeFileSync(join(folder, "snippet.ts"), snippet!);
      await build({
        entryPoints: [join(folder, "snippet.ts")],
        outfile: join(folder, "snippet.mjs"),
        ...nodeBundle,
        alias: { "tensorbus/plan": join(root, "src/plan/index.ts") },
      });
      const output = execFileSync(process.execPath, [join(folder, "snippet.mjs")], { encoding: "utf8" });
      expect(output).toMatch(/^[0-9a-f]{64} 8n? 4\n$/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("plans the spec that it names", async () => {
    const [, spec] = /tensorbus plan (\S+) --verify/.exec(readme)!;
    const { code, stdout } = await runCli("plan", join(root, spec!), "--verify");
    expect(code).toBe(0);
    expect(stdout).toContain("written exactly once");
  });

  it("links to files that exist", () => {
    for (const [, link] of readme.matchAll(/\]\((?!http)([^)#]+)\)/g)) {
      expect(() => readFileSync(join(root, link!)), link).not.toThrow(/ENOENT/);
    }
  });

  it("names variables and codes that exist", () => {
    for (const [code] of readme.matchAll(/\bTB_[A-Z_]+\b/g)) expect(Object.keys(errorCodes)).toContain(code);
  });
});
