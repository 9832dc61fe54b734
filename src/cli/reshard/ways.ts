/** What both ways of resharding share: the source, signals, progress, and how types are told. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { journalName } from "../../checkpoint/journal.ts";
import { manifestName } from "../../checkpoint/names.ts";
import { type CheckpointSource, safetensorsSource } from "../../checkpoint/source.ts";
import { dcpMetadataName, dcpSource } from "../../checkpoint/source-dcp.ts";
import { folderSource } from "../../checkpoint/source-folder.ts";
import { resultSource } from "../../checkpoint/source-result.ts";
import { TensorBusError } from "../../errors.ts";
import { resolveCheckpoint } from "../../model/safetensors.ts";
import type { PlanInput } from "../../plan/index.ts";
import { formatCount } from "../ui/format.ts";
import type { Progress } from "../ui/progress.ts";

interface SourceOptions {
  /** Only tensors that begin so, without it. */
  readonly prefix?: string | undefined;
  /** The model's config.json, or its folder, if it is not in the checkpoint's. */
  readonly model?: string | undefined;
}

/** A result of an earlier reshard, a distributed checkpoint, safetensors, or what vLLM has saved of its ranks. */
export async function openSource(
  checkpoint: string,
  { prefix, model }: SourceOptions = {},
): Promise<CheckpointSource> {
  if (await exists(join(checkpoint, dcpMetadataName))) return dcpSource(checkpoint, prefix);
  return withPrefix(await openFiles(checkpoint, await configOf(model ?? checkpoint)), prefix);
}

/** The config.json of a folder; a file as it is. */
export async function configOf(path: string): Promise<string> {
  return (await isFolder(path)) ? join(path, "config.json") : path;
}

async function openFiles(checkpoint: string, config: string): Promise<CheckpointSource> {
  if ((await exists(join(checkpoint, journalName))) && !(await exists(join(checkpoint, manifestName)))) {
    throw new TensorBusError(
      "TB_FILE",
      `${checkpoint} holds a result that a run began and did not end: run the same command again, or remove ${journalName} if what lies there is something else`,
      { details: { path: checkpoint, journal: journalName } },
    );
  }
  if ((await isFolder(checkpoint)) && !(await hasIndex(checkpoint))) {
    if (await exists(join(checkpoint, manifestName))) return resultSource(checkpoint);
    const found = await folderSource(checkpoint, config);
    if (found !== undefined) return found;
  }
  return safetensorsSource(await resolveCheckpoint(checkpoint));
}

function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

function withPrefix(source: CheckpointSource, prefix = ""): CheckpointSource {
  if (prefix === "") return source;
  const tensors = source.tensors
    .filter(({ name }) => name.startsWith(prefix))
    .map((tensor) => ({ ...tensor, name: tensor.name.slice(prefix.length) }));
  return { ...source, tensors };
}

/** A result of `--target hf` is read as the checkpoint that it is. */
async function hasIndex(folder: string): Promise<boolean> {
  const names = await readdir(folder);
  return names.includes("model.safetensors") || names.includes("model.safetensors.index.json");
}

/** Calls back for SIGINT and SIGTERM, as long as it is used. */
export function onSignals(call: (reason: Error) => void): Disposable {
  const onSignal = (signal: NodeJS.Signals) => call(new Error(`${signal} was received`));
  process.once("SIGINT", onSignal);
  process.once("SIGTERM", onSignal);
  return {
    [Symbol.dispose]() {
      process.off("SIGINT", onSignal);
      process.off("SIGTERM", onSignal);
    },
  };
}

/** How many tensors are cast from what to what, and how many keep their type; says it if the type that was `asked` for is none of them. */
export function describeTypes(input: PlanInput, asked?: string): string {
  const counts = new Map<string, number>();
  for (const { dtype, targetDtype = dtype } of input.tensors) {
    const what = targetDtype === dtype ? `${dtype} kept` : `${dtype} -> ${targetDtype} cast`;
    counts.set(what, (counts.get(what) ?? 0) + 1);
  }
  const types = [...counts].map(([what, count]) => `${formatCount(count)} ${what}`).join(", ");
  const missing =
    asked !== undefined && input.tensors.every(({ dtype, targetDtype = dtype }) => targetDtype !== asked);
  return missing
    ? `${types}; nothing is ${asked}: --target-dtype leaves floats that have a scale beside them, and all but the main type, as they are; --rule casts what it names`
    : types;
}

/** All ranks of some meshes, each once, ascending. */
export function ranksOf(lists: readonly Int32Array[]): number[] {
  return [...new Set(lists.flatMap((ranks) => [...ranks]))].sort((a, b) => a - b);
}

/** The script that this process runs, which also knows the command of one rank. */
export function entryScript(): string {
  const script = process.argv[1];
  if (script === undefined)
    throw new TensorBusError(
      "TB_SPEC",
      "reshard cannot start its processes: this process runs no script that they could run",
    );
  return script;
}

/** One bar at a time: that of the phase that the slowest part of the work is in. */
export class PhaseBars<P extends string> {
  readonly #start: (phase: P, total: number) => Progress;
  #phase: P | undefined;
  #total = 0;
  #bar: Progress | undefined;

  constructor(start: (phase: P, total: number) => Progress) {
    this.#start = start;
  }

  show({ phase, done, total }: { readonly phase: P; readonly done: number; readonly total: number }): void {
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
