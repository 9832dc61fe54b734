/** What the supervisor of ranks makes of those that stand still. The ranks are processes that play their parts by a script. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { runReshard } from "../../src/cli/reshard/supervisor.ts";
import { DeviceMesh, Shard } from "../../src/layout/index.ts";
import { planTransfer } from "../../src/plan/index.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-supervisor-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Two sources and no target: `body` is what a rank does with each message of the supervisor. */
async function run(body: string) {
  const entry = join(folder, "rank.mjs");
  const heads =
    "let rank; process.on('message', (message) => { if (message.kind === 'job') rank = message.rank;";
  writeFileSync(entry, `${heads} ${body} });`);
  const side = { mesh: new DeviceMesh([2]), placements: [Shard(0)] };
  const plan = await planTransfer({
    tensors: [{ name: "w", shape: [4], dtype: "float32", pair: "pair" }],
    pairs: { pair: { source: side, target: side } },
  });
  return runReshard({
    ...{ plan, checkpoint: "none", sourceRanks: [0, 1, 2], targetFiles: new Map(), entry },
    ...{ transport: "auto", verify: false, timeoutMs: 1000 },
  });
}

describe("ranks that stand still", () => {
  it("are named, whoever is said to be waited for", async () => {
    const failing = run(`
      const failure = { code: "TB_TIMEOUT", message: "rank 0 waited too long, for rank 2 first of all", rank: 2 };
      if (message.kind === "job" && rank === 0) process.send({ kind: "failed", failure }, () => process.exit(4));
      if (message.kind === "abort" && rank === 2) process.send({ kind: "ending" });`);
    await expect(failing).rejects.toMatchObject({
      code: "TB_TIMEOUT",
      message: "rank 1: its process does not answer; rank 2: rank 0 waited too long, for rank 2 first of all",
      details: { rank: 1 },
    });
  }, 30_000);

  it("are named too if a rank gave up meanwhile, and another one heard of that first", async () => {
    const failing = run(`
      const failure = { code: "TB_INVALIDATED", message: "rank 0 released it", rank: 0 };
      if (message.kind === "job" && rank === 2) process.send({ kind: "failed", failure }, () => process.exit(4));
      if (message.kind === "abort" && rank === 0) process.send({ kind: "ending" });`);
    await expect(failing).rejects.toMatchObject({
      message: "rank 1: its process does not answer; rank 0: rank 0 released it",
    });
  }, 30_000);

  it("are ended once the result is there", async () => {
    const done = run(`
      if (message.kind === "job") process.send({ kind: "ready", verifiedBytes: rank });
      if (message.kind === "commit" && rank !== 1) process.exit();`);
    await expect(done).resolves.toMatchObject({ verifiedBytes: 3 });
  }, 30_000);
});

describe("a rank that ends", () => {
  const heard = `const seen = { code: "TB_PEER_LOST", message: "rank 0 is gone", rank: 0 };
    if (message.kind === "job" && rank === 2) process.send({ kind: "failed", failure: seen }, () => process.exit(4));
    if (message.kind === "abort" && rank === 1) process.exit(4);`;

  it("says itself why, though another one was heard first", async () => {
    const failing = run(`${heard}
      const own = { code: "TB_NO_SPACE", message: "the disk is full", rank: 0 };
      if (message.kind === "abort" && rank === 0) process.send({ kind: "failed", failure: own }, () => process.exit(4));`);
    await expect(failing).rejects.toMatchObject({ code: "TB_NO_SPACE", message: "rank 0: the disk is full" });
  }, 30_000);

  it("is said to have been killed, though another one was heard first", async () => {
    const failing = run(`${heard}
      if (message.kind === "abort" && rank === 0) process.kill(process.pid, "SIGKILL");`);
    await expect(failing).rejects.toMatchObject({ message: "rank 0: its process was killed by SIGKILL" });
  }, 30_000);

  it("has no word in it if it only follows the others", async () => {
    const failing = run(`${heard}
      const own = { code: "TB_CANCELLED", message: "the others ended it", rank: 0 };
      if (message.kind === "abort" && rank === 0) process.send({ kind: "failed", failure: own }, () => process.exit(4));`);
    await expect(failing).rejects.toMatchObject({ code: "TB_PEER_LOST", message: "rank 0: rank 0 is gone" });
  }, 30_000);
});
