/** From files to files, in one process: what to read, what to write, and what is said of it. */
import { readdir, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type MoveOptions, type MoveSummary, moveCheckpoint } from "../../checkpoint/mover.ts";
import { ResultFolder } from "../../checkpoint/result.ts";
import type { MovePhase } from "../../checkpoint/run.ts";
import type { CheckpointSource, SourceTensor } from "../../checkpoint/source.ts";
import {
  eachBox,
  NumberedTensors,
  rankFiles,
  type TargetFile,
  targetDigest,
} from "../../checkpoint/target.ts";
import { engineTarget } from "../../checkpoint/target-engine.ts";
import { modelTarget } from "../../checkpoint/target-model.ts";
import { TensorBusError } from "../../errors.ts";
import { readModel } from "../../model/config.ts";
import { fileError, readBytes, writeWholeFile } from "../../model/files.ts";
import { collapseNames } from "../../model/names.ts";
import { planTransfer } from "../../plan/index.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes, formatCount, formatDuration } from "../ui/format.ts";
import { startProgress } from "../ui/progress.ts";
import { formatFields } from "../ui/table.ts";
import type { ReshardOptions } from "./command.ts";
import { requestOfFlags } from "./request.ts";
import { configOf, describeTypes, entryScript, onSignals, openSource, PhaseBars } from "./ways.ts";

/** What is written, and what else belongs to it. */
interface Planned {
  readonly source: CheckpointSource;
  readonly files: readonly TargetFile[];
  readonly digest: string;
  /** Lines of the summary. */
  readonly fields: readonly (readonly [string, string])[];
  /** Files by name that are made beside, and a folder whose other files are copied. */
  readonly beside: ReadonlyMap<string, string>;
  readonly copyFrom: string | undefined;
  /** What to do with the result. */
  readonly hint: string | undefined;
  /** True if the layout is kept, so that the result can be read again. */
  readonly keepsLayout: boolean;
}

const labels: Readonly<Record<MovePhase, string>> = { move: "moving         ", verify: "verifying      " };

export async function moveFiles(
  context: CommandContext,
  checkpoint: string,
  options: ReshardOptions,
): Promise<void> {
  const planned = await planFiles(checkpoint, options);
  const result = await ResultFolder.open(options.out, options.force === true);
  const { stdout, stderr } = context;
  const { source, files } = planned;
  await stdout.line(
    formatFields(stdout, [
      ["checkpoint", `${source.path}, ${formatCount(source.tensors.length)} tensors`],
      ...(source.unlisted > 0
        ? ([
            ["left out", `${formatCount(source.unlisted)} tensors in its files that its index does not list`],
          ] as const)
        : []),
      ["target", `${options.target}: ${formatCount(files.length)} ${files.length === 1 ? "file" : "files"}`],
      ...planned.fields,
    ]),
  );
  const bars = new PhaseBars<MovePhase>((phase, total) =>
    startProgress(stderr, { label: labels[phase], total, unit: "bytes" }),
  );
  const cancel = new AbortController();
  using _signals = onSignals((reason) => cancel.abort(reason));
  try {
    const summary = await moveCheckpoint({
      source,
      files,
      digest: planned.digest,
      folder: result.path,
      verify: options.verify,
      threads: { count: options.threads, script: entryScript(), command: "reshard-thread" },
      signal: cancel.signal,
      onProgress: (phase, done, total) => bars.show({ phase, done, total }),
      onPublish: () => result.invalidate(),
      onPublished: (summary) => completeResult(result, planned, options, summary),
    } satisfies MoveOptions);
    bars.stop();
    const rate = summary.seconds > 0 ? ` (${formatBytes(summary.movedBytes / summary.seconds)}/s)` : "";
    await stdout.line(
      formatFields(stdout, [
        [
          "moved".padEnd("checkpoint".length),
          `${formatBytes(summary.movedBytes)} of the checkpoint into ${formatBytes(summary.writtenBytes)} in ${formatDuration(summary.seconds)}${rate}`,
        ],
        ...(summary.resumedBytes > 0
          ? ([["resumed", `${formatBytes(summary.resumedBytes)} were done by an earlier run`]] as const)
          : []),
        [
          "verified",
          options.verify
            ? `${formatBytes(summary.verifiedBytes)} of target files have the checksums of what was read${isCasting(planned) ? " and cast" : ""}`
            : "no (--no-verify)",
        ],
        ...(planned.hint === undefined ? [] : ([["load", planned.hint]] as const)),
      ]),
    );
  } finally {
    bars.stop();
  }
}

/** All files have their names: what belongs beside them comes, and at last the manifest. */
async function completeResult(
  result: ResultFolder,
  { source, files, digest, beside, copyFrom, keepsLayout }: Planned,
  { target }: ReshardOptions,
  summary: MoveSummary,
): Promise<void> {
  const taken = copyFrom === undefined ? [] : await copyOthers(copyFrom, result.path);
  const written = summary.files.map(({ name, bytes, checksum }) => ({
    name,
    bytes,
    crc32c: checksum.toString(16).padStart(8, "0"),
  }));
  const manifest = {
    plan: digest,
    checkpoint: source.path,
    target,
    files: written,
    ...(taken.length > 0 && { beside: taken }),
  };
  await result.complete(manifest, keepsLayout ? files : undefined, beside);
}

function isCasting({ source, files }: Planned): boolean {
  const tensors = new NumberedTensors(source.tensors);
  let isCasting = false;
  for (const { parameters } of files) {
    for (const parameter of parameters)
      eachBox(parameter, (tensor) => {
        isCasting ||= tensors.of(tensor)?.dtype !== parameter.dtype;
      });
  }
  return isCasting;
}

async function planFiles(checkpoint: string, options: ReshardOptions): Promise<Planned> {
  if (options.target === "hf") return planModel(checkpoint, options);
  if (/^vllm(:|$)/.test(options.target)) return planEngine(checkpoint, options);
  if (/^[a-zA-Z]/.test(options.target)) {
    const what = `--target ${JSON.stringify(options.target)}: expected MESH:PLACEMENTS such as 2x4:R,S(0), vllm:tp=N, or hf`;
    throw new TensorBusError("TB_SPEC", what, { details: { flag: "--target", value: options.target } });
  }
  return planRanks(checkpoint, options);
}

/** A file for each rank of a mesh. */
async function planRanks(checkpoint: string, options: ReshardOptions): Promise<Planned> {
  const source = await openSource(checkpoint, options);
  const request = requestOfFlags(source, { ...options, rules: options.rule });
  const plan = await planTransfer(request.input);
  return {
    source,
    files: rankFiles(request.input, source.metadata, plan.digest),
    digest: plan.digest,
    fields: [
      ["types", describeTypes(request.input, options.targetDtype)],
      ["plan", plan.digest.slice(0, 16)],
    ],
    beside: new Map(),
    copyFrom: undefined,
    hint: undefined,
    keepsLayout: true,
  };
}

/** What vLLM loads without cutting anything itself. */
async function planEngine(checkpoint: string, options: ReshardOptions): Promise<Planned> {
  refuse(
    options,
    ["rule", "targetDtype"],
    `goes with MESH:PLACEMENTS; ${options.target} says where everything lies`,
  );
  const source = await openSource(checkpoint, options);
  const folder = await folderOf(checkpoint);
  const config = await configOf(options.model ?? folder);
  if (options.model === undefined && !(await isFile(config))) {
    const what = `${options.target} needs the model's config.json, and there is no ${config}: name it by --model`;
    throw new TensorBusError("TB_FILE", what, { details: { path: config, flag: "--model" } });
  }
  const model = await readModel(config);
  const { files, dropped, tp, ep } = engineTarget(options.target, model);
  const known = new Set(model.tensors.map(({ name }) => name));
  const unused = source.tensors.filter(({ name }) => !known.has(name)).map(({ name }) => name);
  const fields: [string, string][] = [];
  if (dropped.size > 0) fields.push(["not in it", collapseNames([...dropped.keys()])]);
  if (unused.length > 0)
    fields.push(["unknown", `${collapseNames(unused)}: not of the model that config.json describes`]);
  const digest = targetDigest(files);
  fields.push(["layout", digest.slice(0, 16)]);
  return {
    source,
    files,
    digest,
    fields,
    beside: new Map(),
    copyFrom: folder,
    hint: `vllm serve ${options.out} --load-format sharded_state --tensor-parallel-size ${tp}${ep ? " --enable-expert-parallel" : ""}`,
    keepsLayout: true,
  };
}

/** One checkpoint again. */
async function planModel(checkpoint: string, options: ReshardOptions): Promise<Planned> {
  refuse(options, ["rule", "targetDtype"], "goes with MESH:PLACEMENTS; hf keeps what there is");
  const read = await openSource(checkpoint, options);
  const source = options.with === undefined ? read : withOriginal(read, await openSource(options.with));
  const folder = await folderOf(checkpoint);
  const config = await configOf(options.model ?? folder);
  const { missing, unknown } = await missingTensors(source, config, options.model !== undefined);
  if (missing.length > 0) {
    throw new TensorBusError(
      "TB_TENSOR_MISSING",
      `${checkpoint} does not have ${collapseNames(missing)}, which the engine that it was made for did not need; name the original by --with`,
      { details: { tensors: missing } },
    );
  }
  const { files, index } = modelTarget(source.tensors);
  return {
    source,
    files,
    digest: targetDigest(files),
    fields: unknown === undefined ? [] : [["model", `unknown, so that tensors may be missing: ${unknown}`]],
    beside: new Map(index === undefined ? [] : [["model.safetensors.index.json", index]]),
    copyFrom: folder,
    hint: undefined,
    keepsLayout: false,
  };
}

/**
 * Tensors of the model that config.json describes and that are missing in the source; or why nobody knows, if there is no config, or one of a
 * family that is unknown here: a checkpoint of any model is moved. One that was named has to be read.
 */
async function missingTensors(
  { tensors }: CheckpointSource,
  config: string,
  isNamed: boolean,
): Promise<{ readonly missing: readonly string[]; readonly unknown?: string }> {
  if (!isNamed && !(await isFile(config))) return { missing: [], unknown: `there is no ${config}` };
  const names = new Set(tensors.map(({ name }) => name));
  try {
    const model = await readModel(config);
    return { missing: model.tensors.map(({ name }) => name).filter((name) => !names.has(name)) };
  } catch (error) {
    if (isNamed || !(error instanceof TensorBusError) || error.code !== "TB_MODEL_CONFIG") throw error;
    return { missing: [], unknown: error.message };
  }
}

/**
 * Tensors of an original fill in what is missing in a source; its order is kept. `TB_SHAPE` or `TB_DTYPE` for a tensor that differs
 * from the original's: it is of another model, or of this one in another form, and the two would be mixed.
 */
function withOriginal(source: CheckpointSource, original: CheckpointSource): CheckpointSource {
  requireSameForm(source, original);
  const own = new Map(source.tensors.map((tensor) => [tensor.name, tensor]));
  const shifted = ({ boxes, ...tensor }: SourceTensor): SourceTensor => ({
    ...tensor,
    boxes: boxes.map((box) => ({ ...box, file: box.file + source.files.length })),
  });
  const tensors = original.tensors.map((tensor) => own.get(tensor.name) ?? shifted(tensor));
  const known = new Set(original.tensors.map(({ name }) => name));
  return {
    ...source,
    files: [...source.files, ...original.files],
    tensors: [...tensors, ...source.tensors.filter(({ name }) => !known.has(name))],
  };
}

function requireSameForm(source: CheckpointSource, original: CheckpointSource): void {
  const others = new Map(original.tensors.map((tensor) => [tensor.name, tensor]));
  for (const { name, shape, dtype } of source.tensors) {
    const other = others.get(name);
    if (other === undefined || (String(other.shape) === String(shape) && other.dtype === dtype)) continue;
    throw new TensorBusError(
      String(other.shape) === String(shape) ? "TB_DTYPE" : "TB_SHAPE",
      `--with ${original.path} has ${name} as ${other.dtype} of [${other.shape}], but ${source.path} has ${dtype} of [${shape}]: the first is not the original of the second`,
      { details: { flag: "--with", tensor: name, dtype, shape, original: [other.dtype, other.shape] } },
    );
  }
}

/** Says where a checkpoint lies, with what else belongs to the model. */
async function folderOf(checkpoint: string): Promise<string> {
  const found = await stat(checkpoint).catch((error: unknown) => {
    throw fileError(error, "read", checkpoint);
  });
  return found.isDirectory() ? checkpoint : dirname(checkpoint);
}

function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}

function refuse(options: ReshardOptions, names: readonly ("rule" | "targetDtype")[], why: string): void {
  for (const name of names) {
    const value = options[name];
    if (value === undefined || value.length === 0) continue;
    const flag = name === "rule" ? "--rule" : "--target-dtype";
    throw new TensorBusError("TB_SPEC", `${flag} ${why}`, { details: { flag } });
  }
}

/** What a model's folder has beside its weights: config, tokenizer, templates, code, licences. */
const besideWeights =
  /^(config\.json|.*\.(json|jinja|txt|model|tiktoken|py|md)|LICEN[CS]E.*|NOTICE.*|USE_POLICY.*)$/i;
/** The largest tokenizers have some 30 MB. */
const mostBeside = 256 * 2 ** 20;

/**
 * Copies what belongs to a model, if its folder is one: it has a config. A folder of downloads is none, and a model's may hold a
 * trainer's states too, so that nothing is taken but what is known. In caches of a hub all files are links. Gives the names.
 */
async function copyOthers(from: string, to: string): Promise<string[]> {
  const taken: string[] = [];
  if (!(await isFile(join(from, "config.json")))) return taken;
  for (const name of await readdir(from)) {
    const isOther =
      !besideWeights.test(name) || name.endsWith(".index.json") || name.startsWith("tensorbus-");
    const found = isOther ? undefined : await stat(join(from, name)).catch(() => undefined);
    if (found?.isFile() !== true || found.size > mostBeside) continue;
    // Written anew: a copy of a file that nobody may write could not be replaced.
    await writeWholeFile(join(to, name), await readBytes(join(from, name), mostBeside));
    taken.push(name);
  }
  return taken;
}
