/** What `tensorbus demo` does. */
import { nativeLibrary } from "../../ffi/native.ts";
import { parseSpec } from "../../model/spec.ts";
import { planTransfer } from "../../plan/index.ts";
import { entryScript } from "../reshard/ways.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes } from "../ui/format.ts";
import { type Progress, startProgress } from "../ui/progress.ts";
import { formatFields } from "../ui/table.ts";
import { memcpyCeiling, socketCeiling } from "./ceilings.ts";
import { demoCheckpoint, demoFolder, demoRules } from "./checkpoint.ts";
import { runRounds } from "./rounds.ts";

const rounds = 5;

/** Runs the demo in a folder, or in that of the environment. */
export async function runDemo(context: CommandContext, dir: string | undefined): Promise<void> {
  const folder = dir ?? demoFolder(context.environment);
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
