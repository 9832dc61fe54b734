/**
 * The folder of a result: its files, and a manifest that says which of them belong together. The manifest is written last and
 * removed first, so that a folder without one is no result, and files of two results never look like one.
 */
import { createHash } from "node:crypto";
import { realpathSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import * as z from "zod";
import { TensorBusError } from "../errors.ts";
import { makeFolders } from "../folders.ts";
import { fileError, readTextFile, writeWholeFile } from "../model/files.ts";
import { Journal } from "./journal.ts";
import { parseJson } from "./json.ts";
import { layoutBytes, readLayoutFile } from "./layout-file.ts";
import { isOfResult, layoutName, manifestName } from "./names.ts";
import { syncFolder } from "./output.ts";
import type { TargetFile } from "./target.ts";

const maxManifestBytes = 64 * 2 ** 20;

const manifestSchema = z.strictObject({
  format: z.literal(1),
  /** The digest of the plan, or of the target's layout: equal for results that hold the same of the same checkpoint. */
  plan: z.string(),
  checkpoint: z.string(),
  /** How it was asked for: `2:S(1)`, `vllm:tp=4`, `hf`. */
  target: z.string(),
  files: z.array(
    z.strictObject({
      name: z.string(),
      bytes: z.int().min(0),
      /** CRC-32C of the whole file, 8 hexadecimal digits. */
      crc32c: z
        .string()
        .regex(/^[0-9a-f]{8}$/)
        .optional(),
    }),
  ),
  /** Files that were taken along: config, tokenizer, licences. They go with the result. */
  beside: z.array(z.string()).optional(),
  /** SHA-256 of the layout's file. */
  layout: z.string().optional(),
});
export type ResultManifest = z.infer<typeof manifestSchema>;

export class ResultFolder {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /**
   * Makes the folder, if there is none. `TB_EXISTS` if it holds an earlier result, or files of one, unless `force` is to replace
   * it; what a run that was killed has left is no result. `TB_FILE` if it cannot be a folder.
   */
  static async open(path: string, force: boolean): Promise<ResultFolder> {
    const made = makeResultFolder(path);
    if (made !== undefined) syncParents(made, path);
    const folder = new ResultFolder(path);
    const names = force ? [] : await folder.#names();
    const found = names.filter(isOfResult);
    // Files that have their names already are those of a run that was killed while it gave them, and that goes on. Before that,
    // they are somebody else's.
    const isOfKilled = !names.includes(manifestName) && Journal.isPublishing(path);
    if (found.length === 0 || isOfKilled) return folder;
    const plan = (await readManifest(path).catch(() => undefined))?.plan;
    const what =
      plan === undefined ? "files of an earlier result" : `an earlier result, of plan ${plan.slice(0, 16)}`;
    throw new TensorBusError(
      "TB_EXISTS",
      `--out ${path} holds ${what} (${found[0]}): name another folder, or replace all of it by --force`,
      { details: { path, files: found, plan } },
    );
  }

  fileOf(name: string): string {
    return join(this.path, name);
  }

  /**
   * Before the first file takes its final name: what is there is no result any more, and goes, so that no reader that asks for
   * no manifest takes files of two results for one. The manifest goes first; each step is durable before the next one.
   */
  async invalidate(): Promise<void> {
    const entries = await readdir(this.path, { withFileTypes: true }).catch((error: unknown) => {
      throw fileError(error, "read the folder", this.path);
    });
    // A folder that is called so is none of ours: whoever needs its name says that it cannot have it.
    const files = entries.filter((entry) => !entry.isDirectory()).map(({ name }) => name);
    const taken = (await readManifest(this.path).catch(() => undefined))?.beside;
    await this.#remove(manifestName);
    syncFolder(this.path);
    for (const name of files) if (isOfResult(name) || taken?.includes(name)) await this.#remove(name);
    syncFolder(this.path);
  }

  async #remove(name: string): Promise<void> {
    const path = join(this.path, name);
    await rm(path, { force: true }).catch((error: unknown) => {
      throw fileError(error, "remove", path);
    });
  }

  /**
   * All files have their final names: those of an earlier result go, those that are made beside come, by their names. Once all
   * of that is durable, the manifest says what there is, and is durable itself.
   */
  async complete(
    manifest: Omit<ResultManifest, "format" | "layout">,
    layout: readonly TargetFile[] | undefined,
    beside: ReadonlyMap<string, string> = new Map(),
  ): Promise<void> {
    const names = new Set([...manifest.files.map(({ name }) => name), ...beside.keys()]);
    for (const name of await this.#names()) {
      if (isOfResult(name) && !names.has(name)) await this.#remove(name);
    }
    for (const [name, text] of beside) await writeWholeFile(join(this.path, name), text);
    const bytes = layout && (await layoutBytes(layout));
    if (bytes !== undefined) await writeWholeFile(join(this.path, layoutName), bytes);
    const whole: ResultManifest = {
      format: 1,
      ...manifest,
      ...(bytes && { layout: createHash("sha256").update(bytes).digest("hex") }),
    };
    syncFolder(this.path);
    await writeWholeFile(join(this.path, manifestName), `${JSON.stringify(whole, null, 2)}\n`);
    syncFolder(this.path);
  }

  #names(): Promise<string[]> {
    return readdir(this.path).then(
      (names) => names.sort(),
      (error: unknown) => {
        throw fileError(error, "read the folder", this.path);
      },
    );
  }
}

/** Makes the names of folders durable that were made for a path: the first of them, and all below it. */
function syncParents(first: string, path: string): void {
  const last = realpathSync(first);
  for (let folder = realpathSync(path); folder !== dirname(folder); folder = dirname(folder)) {
    syncFolder(dirname(folder));
    if (folder === last) return;
  }
}

/**
 * `TB_FILE` if a file that is read would be replaced: as a file of the result, which have these names, or as one of an earlier
 * result, all of which go.
 */
export function refuseOwnSource(sources: readonly string[], folder: string, names: readonly string[]): void {
  const own = new Set(names);
  const place = realpathSync(folder);
  for (const source of sources) {
    // By the name that it was given, and by where it lies, if that is a link.
    for (const path of [source, realpathSync(source)]) {
      const name = basename(path);
      if (realpathSync(dirname(path)) !== place || !(own.has(name) || isOfResult(name))) continue;
      throw new TensorBusError(
        "TB_FILE",
        `${join(folder, name)} is a file of the source, and would be replaced: name another folder`,
        { details: { path: source, folder } },
      );
    }
  }
}

/** The manifest of a folder. `TB_FILE` if there is none, or if it is none. */
export async function readManifest(folder: string): Promise<ResultManifest> {
  const path = join(folder, manifestName);
  const parsed = manifestSchema.safeParse(parseJson(await readTextFile(path, maxManifestBytes)));
  if (parsed.success) return parsed.data;
  throw new TensorBusError("TB_FILE", `${path} is not the manifest of a result`, { details: { path } });
}

/** What the files of a result hold, one after the other. `TB_FILE` if its layout is missing, damaged, or of another result. */
export function readLayout(
  folder: string,
  manifest: ResultManifest,
): AsyncIterable<Pick<TargetFile, "name" | "parameters">> {
  return readLayoutFile(join(folder, layoutName), manifest.layout);
}

function makeResultFolder(path: string): string | undefined {
  try {
    return makeFolders(path);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== "EEXIST" && code !== "ENOTDIR")
      throw fileError(cause as NodeJS.ErrnoException, "make the folder", path);
    const message = `--out ${path} is a file: name a folder, which is made if there is none`;
    throw new TensorBusError("TB_FILE", message, { details: { path, flag: "--out" }, cause });
  }
}
