import { TensorBusError } from "../../errors.ts";
import { nativeLibrary } from "../../ffi/native.ts";
import type { Plan } from "../../plan/index.ts";
import type { TransportName } from "../transports.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes, formatCount, formatDuration, formatRanks } from "../ui/format.ts";
import { type Progress, startProgress } from "../ui/progress.ts";
import { formatFields } from "../ui/table.ts";
import type { Phase } from "./messages.ts";
import type { ResultFolder } from "./result.ts";
import { type ReshardProgress, runReshard } from "./supervisor.ts";

export interface CheckpointTransfer {
  readonly plan: Plan;
  readonly checkpoint: string;
  /** Tensors in its files that its index leaves out. */
  readonly unlisted: number;
  readonly result: ResultFolder;
  readonly transport: TransportName;
  readonly verify: boolean;
  readonly timeoutMs: number;
}

const labels: Readonly<Record<Phase, string>> = {
  read: "reading shards ",
  move: "moving         ",
  write: "writing files  ",
  verify: "verifying      ",
};

/** Moves a checkpoint by a plan, with progress on stderr and a summary on stdout. SIGINT and SIGTERM cancel it. */
export async function transferCheckpoint(
  { stdout, stderr }: CommandContext,
  transfer: CheckpointTransfer,
): Promise<void> {
  nativeLibrary(); // without it every rank would fail: better one answer, before any is started
  const { plan, result, unlisted } = transfer;
  const pairs = Object.values(plan.input.pairs);
  const sources = ranksOf(pairs.map(({ source }) => source.mesh.ranks));
  const targets = ranksOf(pairs.map(({ target }) => target.mesh.ranks));
  await stdout.line(
    formatFields(stdout, [
      ["checkpoint", `${transfer.checkpoint}, ${formatCount(plan.input.tensors.length)} tensors`],
      ...(unlisted > 0
        ? ([
            ["left out", `${formatCount(unlisted)} tensors in its files that its index does not list`],
          ] as const)
        : []),
      ["source", `ranks ${formatRanks(sources)}, one process each`],
      ["target", `ranks ${formatRanks(targets)}, one process and one file each`],
      ["types", describeTypes(plan)],
      ["plan", plan.digest.slice(0, 16)],
    ]),
  );
  const bars = new PhaseBars((phase, total) =>
    startProgress(stderr, { label: labels[phase], total, unit: "bytes" }),
  );
  const cancel = new AbortController();
  const onSignal = (signal: NodeJS.Signals) => cancel.abort(new Error(`${signal} was received`));
  process.once("SIGINT", onSignal);
  process.once("SIGTERM", onSignal);
  try {
    const summary = await runReshard({
      ...transfer,
      sourceRanks: sources,
      targetFiles: new Map(targets.map((rank) => [rank, result.fileOf(rank)])),
      onPublish: () => result.invalidate(),
      signal: cancel.signal,
      entry: entryScript(),
      onProgress: (progress) => bars.show(progress),
    });
    bars.stop();
    await result.complete(plan.digest, transfer.checkpoint, targets);
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
          transfer.verify
            ? `${formatBytes(verifiedBytes)} of target files are, byte for byte, the checkpoint${isCasting(plan) ? " cast again" : ""}`
            : "no (--no-verify)",
        ],
      ]),
    );
  } finally {
    bars.stop();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}

/** How many tensors are cast from what to what, and how many keep their type. */
function describeTypes({ input }: Plan): string {
  const counts = new Map<string, number>();
  for (const { dtype, targetDtype = dtype } of input.tensors) {
    const what = targetDtype === dtype ? `${dtype} kept` : `${dtype} -> ${targetDtype} cast`;
    counts.set(what, (counts.get(what) ?? 0) + 1);
  }
  return [...counts].map(([what, count]) => `${formatCount(count)} ${what}`).join(", ");
}

function isCasting({ input }: Plan): boolean {
  return input.tensors.some(({ dtype, targetDtype = dtype }) => targetDtype !== dtype);
}

/** All ranks of some meshes, each once, ascending. */
export function ranksOf(lists: readonly Int32Array[]): number[] {
  return [...new Set(lists.flatMap((ranks) => [...ranks]))].sort((a, b) => a - b);
}

/** The script that this process runs, which also knows the command of one rank. */
export function entryScript(): string {
  const script = process.argv[1];
  if (script === undefined)
    throw new TensorBusError("TB_SPEC", "reshard starts processes of its own script, and there is none");
  return script;
}

/** One bar at a time: that of the phase that the slowest rank is in. */
class PhaseBars {
  readonly #start: (phase: Phase, total: number) => Progress;
  #phase: Phase | undefined;
  #total = 0;
  #bar: Progress | undefined;

  constructor(start: (phase: Phase, total: number) => Progress) {
    this.#start = start;
  }

  show({ phase, done, total }: ReshardProgress): void {
    if (phase !== this.#phase) {
      this.stop();
      this.#phase = phase;
      this.#total = total;
      this.#bar = this.#start(phase, total);
    }
    this.#bar?.update(done);
  }

  stop(): void {
    this.#bar?.update(this.#total);
    this.#bar?.stop();
    this.#bar = undefined;
  }
}
