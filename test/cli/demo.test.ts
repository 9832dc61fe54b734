import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoCheckpoint, demoConfig, demoRules } from "../../src/cli/demo/checkpoint.ts";
import { DemoWorld } from "../../src/cli/demo/supervisor.ts";
import { parseSpec } from "../../src/model/spec.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { BundledCli } from "./kit/bundled-cli.ts";

let cli: BundledCli;
let folder: string;
let checkpoint: string;

beforeAll(async () => {
  cli = await BundledCli.build();
  folder = mkdtempSync(join(tmpdir(), "tensorbus-test-"));
  // What the demo finds in its folder it takes: the same structure, in little.
  const little = { hidden_size: 64, intermediate_size: 176, num_hidden_layers: 2, vocab_size: 499 };
  checkpoint = await demoCheckpoint(folder, () => {}, { ...demoConfig, ...little });
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

async function startWorld(): Promise<DemoWorld> {
  const spec = {
    version: 1,
    model: { safetensors: checkpoint },
    source: { name: "trainer", mesh: [2] },
    target: { name: "engine", mesh: [1] },
    placements: demoRules,
  };
  const { input } = await parseSpec(JSON.stringify(spec), "the test");
  return DemoWorld.start({
    plan: await planTransfer(input),
    checkpoint,
    sourceRanks: [0, 1],
    targetRanks: [2],
    timeoutMs: 60_000,
    entry: cli.script,
  });
}

const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

describe("demo", () => {
  it("hands a trainer's weights to an engine for five rounds, beside the machine's ceilings", async () => {
    const { code, stdout, stderr } = await cli.run("demo", "--dir", folder);
    expect(stderr).not.toContain("error");
    expect(stdout).toMatch(/joined +\d+ tensors of 3 pairs, in one batch/);
    expect(stdout.match(/round \d.*\), verified$/gm)).toHaveLength(5);
    expect(stdout.match(/predicted/g)).toHaveLength(4);
    expect(stdout).toMatch(/verified +.* in 5 rounds of different values, byte for byte/);
    expect(stdout).toMatch(/raw socket +.*\/s; the fastest round ran at .* of it/);
    expect(stdout).toMatch(/memcpy +.*\/s; the fastest round ran at .* of it/);
    expect(stderr).toMatch(/round 5: verifying 100%/);
    expect(code).toBe(0);
  }, 600_000);

  it("sees values that are not those of the round", async () => {
    await using world = await startWorld();
    await world.step("join");
    await world.step("train", 1);
    await world.step("move", 1);
    await world.step("verify", 1);
    await expect(world.step("verify", 2)).rejects.toMatchObject({ code: "TB_VERIFY", details: { rank: 2 } });
  }, 600_000);

  it("ends everywhere when an agent is killed, and leaves no process", async () => {
    const world = await startWorld();
    const pids = world.pids;
    try {
      await world.step("join");
      await world.step("train", 1);
      process.kill(pids.agents.get(1)!, "SIGKILL");
      await expect(world.step("move", 1)).rejects.toMatchObject({
        code: expect.stringMatching(/^TB_(AGENT|PEER)_LOST$/),
        details: { rank: expect.any(Number) },
      });
    } finally {
      await world[Symbol.asyncDispose]();
    }
    expect([...pids.agents.values(), ...pids.clients.values()].filter(isAlive)).toEqual([]);
  }, 600_000);
});
