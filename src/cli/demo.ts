import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { Command } from "commander";
import { parseSpec } from "../model/spec.ts";
import { planTransfer } from "../plan/index.ts";
import type { CommandContext } from "./context.ts";
import { memcpyCeiling, serveSocket, socketCeiling } from "./demo/ceilings.ts";
import { demoCheckpoint, demoFolder, demoRules } from "./demo/checkpoint.ts";
import { entryScript, transferCheckpoint } from "./reshard/transfer.ts";
import { formatBytes } from "./ui/format.ts";
import { type Progress, startProgress } from "./ui/progress.ts";
import { formatFields } from "./ui/table.ts";

/** `tensorbus demo`: a trainer's checkpoint, fully sharded over four processes, to a tensor-parallel engine's two. */
export function demoCommand(context: CommandContext): Command {
  return new Command("demo")
    .description(
      "Moves a checkpoint between two groups of processes on this machine, and verifies every byte.",
    )
    .option("--dir <dir>", "where the demo's checkpoint is kept (427 MB, made on the first run)")
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus demo
  $ tensorbus demo --dir /data/tensorbus-demo`,
    )
    .action(async (options: { dir?: string }) => {
      const folder = options.dir ?? demoFolder(context.environment);
      await runDemo(context, folder);
    });
}

/** The sender of the raw-socket ceiling; only `demo` starts it. */
export function demoSocketCommand(): Command {
  return new Command("demo-socket")
    .description("the sender of demo's raw-socket ceiling")
    .action(serveSocket);
}

async function runDemo(context: CommandContext, folder: string): Promise<void> {
  const { stdout } = context;
  await stdout.line(stdout.colors.bold("FSDP on 4 ranks, float32  ->  tensor parallel on 2 ranks, bfloat16"));
  const checkpoint = await makeCheckpoint(context, folder);
  const plan = await planTransfer(await demoInput(checkpoint));
  const out = await mkdtemp(join(folder, "out-"));
  try {
    const summary = await transferCheckpoint(context, {
      plan,
      checkpoint,
      fileOf: (rank) => join(out, `rank-${rank}.safetensors`),
      verify: true,
      timeoutMs: 120_000,
      rounds: 5,
    });
    const speed = summary.movedBytes / Math.min(...summary.roundSeconds);
    const socket = await socketCeiling(entryScript());
    const memcpy = memcpyCeiling();
    const beside = (ceiling: number) =>
      `${formatBytes(ceiling)}/s; the transfer ran at ${(speed / ceiling).toFixed(2)} of it`;
    await stdout.line(
      formatFields(stdout, [
        ["raw socket", beside(socket)],
        ["memcpy", beside(memcpy)],
      ]),
    );
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}

async function makeCheckpoint({ stderr }: CommandContext, folder: string): Promise<string> {
  let progress: Progress | undefined;
  const path = await demoCheckpoint(folder, (done, total) => {
    progress ??= startProgress(stderr, { label: "making the checkpoint", total, unit: "bytes" });
    progress.update(done);
  });
  progress?.stop();
  return path;
}

async function demoInput(checkpoint: string) {
  const spec = {
    version: 1,
    model: { safetensors: checkpoint },
    source: { name: "trainer", mesh: [4] },
    target: { name: "engine", mesh: [2] },
    placements: demoRules,
    targetDtype: [{ match: "^model\\.(embed|layers|norm)|^lm_head|^value_head", dtype: "bfloat16" }],
  };
  return (await parseSpec(JSON.stringify(spec), "the demo")).input;
}
