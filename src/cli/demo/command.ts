import { Command } from "commander";
import { nativeLibrary } from "../../ffi/native.ts";
import { parseSpec } from "../../model/spec.ts";
import { planTransfer } from "../../plan/index.ts";
import { entryScript } from "../reshard/ways.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes } from "../ui/format.ts";
import { type Progress, startProgress } from "../ui/progress.ts";
import { formatFields } from "../ui/table.ts";
import { memcpyCeiling, serveSocket, socketCeiling } from "./ceilings.ts";
import { demoCheckpoint, demoFolder, demoRules } from "./checkpoint.ts";
import { runDemoRank } from "./rank.ts";
import { runRounds } from "./rounds.ts";

const rounds = 5;

/** `tensorbus demo`: the weights of a trainer, fully sharded over four ranks, to the two ranks of a tensor-parallel engine. */
export function demoCommand(context: CommandContext): Command {
  return new Command("demo")
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
  return new Command("demo-socket").action(serveSocket);
}

/** A client of either job; only `demo` starts it. */
export function demoRankCommand(): Command {
  return new Command("demo-rank").action(runDemoRank);
}

async function runDemo(context: CommandContext, folder: string): Promise<void> {
  nativeLibrary(); // without it every process would fail: better one answer, before any is started
  const { stdout } = context;
  await stdout.line(stdout.colors.bold("FSDP on 4 ranks, float32  ->  tensor parallel on 2 ranks, bfloat16"));
  const checkpoint = await makeCheckpoint(context, folder);
  const plan = await planTransfer(await demoInput(checkpoint));
  const cancel = new AbortController();
  const onSignal = () => cancel.abort();
  process.once("SIGINT", onSignal);
  process.once("SIGTERM", onSignal);
  let speed: number;
  try {
    speed = await runRounds(context, { plan, checkpoint, rounds, signal: cancel.signal });
  } finally {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
  const socket = await socketCeiling(entryScript());
  const memcpy = memcpyCeiling();
  const beside = (ceiling: number) =>
    `${formatBytes(ceiling)}/s; the fastest round ran at ${(speed / ceiling).toFixed(2)} of it`;
  await stdout.line(
    formatFields(stdout, [
      ["raw socket", beside(socket)],
      ["memcpy", beside(memcpy)],
    ]),
  );
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
