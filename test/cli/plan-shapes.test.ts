/** What is predicted for a model of a trillion parameters between clusters as they are published; plan.test.ts does so for the examples. */
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { runCli } from "./kit/command-line.ts";

const specs = join(import.meta.dirname, "../../examples/specs");
const topology = "ranksPerHost=8,hostMBps=450000,networkMBps=50000,latencyUs=5";

/** How many times the least time that the links allow a plan is predicted to take. */
async function ratioOf(...argv: string[]): Promise<number> {
  const { code, stdout, stderr } = await runCli("plan", ...argv, "--json");
  expect([code, stderr]).toEqual([0, ""]);
  return JSON.parse(stdout).schedule.ratio;
}

describe("the predicted time is at most 1.1 times what no schedule can beat", { timeout: 60_000 }, () => {
  test.each([
    ["48 hosts of 8 to as many", "kimi-k2.json", 384, 48],
    ["256 ranks to 128", "kimi-k2.json", 256, 16],
    ["128 ranks and 128", "kimi-k2.json", 128, 16],
  ])("of %s", async (_, model, sources, groups) => {
    const sides = ["--source", `fsdp2:dp=${sources}`, "--target", `vllm:tp=8,dp=${groups},ep`];
    const line = ["--model", join(specs, model), "--no-quantized", ...sides, "--topology", topology];
    expect(await ratioOf(...line)).toBeLessThanOrEqual(1.1);
  });
});
