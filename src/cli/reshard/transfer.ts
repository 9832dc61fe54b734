/** `reshard --processes`: through one process for each rank of both sides, as a trainer and an engine move weights. */
import { stat } from "node:fs/promises";
import { forgetUnfinished, lockFolder } from "../../checkpoint/output.ts";
import { ResultFolder, type ResultManifest, refuseOwnSource } from "../../checkpoint/result.ts";
import { rankFiles } from "../../checkpoint/target.ts";
import { nativeLibrary } from "../../ffi/native.ts";
import { resolveCheckpoint } from "../../model/safetensors.ts";
import { type PlanInput, planTransfer } from "../../plan/index.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes, formatCount, formatDuration, formatRanks } from "../ui/format.ts";
import { startProgress } from "../ui/progress.ts";
import { formatFields } from "../ui/table.ts";
import type { ReshardOptions } from "./command.ts";
import type { Phase } from "./messages.ts";
import { requestOfFlags } from "./request.ts";
import { runReshard } from "./supervisor.ts";
import { describeTypes, entryScript, onSignals, openSource, PhaseBars, ranksOf } from "./ways.ts";

const labels: Readonly<Record<Phase, string>> = {
  read: "reading shards ",
  move: "moving         ",
  write: "writing files  ",
  verify: "verifying      ",
};

/** Moves a checkpoint by a plan, with progress on stderr and a summary on stdout. SIGINT and SIGTERM cancel it. */
export async function transferFiles(
  { stdout, stderr }: CommandContext,
  checkpoint: string,
  options: ReshardOptions,
): Promise<void> {
  nativeLibrary(); // without it every rank would fail: better one answer, before any is started
  const path = await resolveCheckpoint(checkpoint);
  const source = await openSource(path);
  const { input } = requestOfFlags(source, { ...options, rules: options.rule });
  const result = await ResultFolder.open(options.out, options.force === true);
  refuseOwnSource(source.files, result.path, []);
  using _lock = lockFolder(result.path);
  forgetUnfinished(result.path);
  const plan = await planTransfer(input);
  const pairs = Object.values(input.pairs);
  const sources = ranksOf(pairs.map(({ source: side }) => side.mesh.ranks));
  const targets = ranksOf(pairs.map(({ target }) => target.mesh.ranks));
  await stdout.line(
    formatFields(stdout, [
      ["checkpoint", `${path}, ${formatCount(input.tensors.length)} tensors`],
      ["source", `ranks ${formatRanks(sources)}, one process each`],
      ["target", `ranks ${formatRanks(targets)}, one process and one file each`],
      ["types", describeTypes(input, options.targetDtype)],
      ["plan", plan.digest.slice(0, 16)],
    ]),
  );
  const bars = new PhaseBars<Phase>((phase, total) =>
    startProgress(stderr, { label: labels[phase], total, unit: "bytes" }),
  );
  const cancel = new AbortController();
  using _signals = onSignals((reason) => cancel.abort(reason));
  try {
    const summary = await runReshard({
      plan,
      checkpoint: path,
      sourceRanks: sources,
      targetFiles: new Map(
        targets.map((rank, number) => [rank, result.fileOf(`rank-${number}.safetensors`)]),
      ),
      transport: options.transport,
      verify: options.verify,
      timeoutMs: options.timeout * 1000,
      onPublish: () => result.invalidate(),
      signal: cancel.signal,
      entry: entryScript(),
      onProgress: (progress) => bars.show(progress),
    });
    bars.stop();
    const files = rankFiles(input, {}, plan.digest);
    const written: ResultManifest["files"] = [];
    for (const { name } of files) written.push({ name, bytes: (await stat(result.fileOf(name))).size });
    const manifest = { plan: plan.digest, checkpoint: path, target: options.target, files: written };
    await result.complete(manifest, files);
    const { movedBytes, seconds, transports, verifiedBytes } = summary;
    await stdout.line(
      formatFields(stdout, [
        [
          "moved".padEnd("checkpoint".length),
          `${formatBytes(movedBytes)} between processes in ${formatDuration(seconds)} (${formatBytes(movedBytes / seconds)}/s)`,
        ],
        ["by way of", transports.length === 0 ? "nothing" : transports.join(", ")],
        [
          "verified",
          options.verify
            ? `${formatBytes(verifiedBytes)} of target files are, byte for byte, the checkpoint${isCasting(input) ? " cast again" : ""}`
            : "no (--no-verify)",
        ],
      ]),
    );
  } finally {
    bars.stop();
  }
}

function isCasting(input: PlanInput): boolean {
  return input.tensors.some(({ dtype, targetDtype = dtype }) => targetDtype !== dtype);
}
