/**
 * The folder of a result: its files, and a manifest that says which of them belong together. The manifest is written last and
 * removed first, so that a folder without one is no result, and files of two results never look like one.
 */
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { z } from "zod";
import { TensorBusError } from "../errors.ts";
import { dtypes } from "../layout/index.ts";
import { fileError, readTextFile, writeWholeFile } from "../model/files.ts";
import { journalName } from "./journal.ts";
import type { TargetFile } from "./target.ts";

export const manifestName = "tensorbus-manifest.json";
/** What every file holds, box by box: written beside the manifest, so that a result can be read as a checkpoint again. */
export const layoutName = "tensorbus-layout.json.gz";
const maxManifestBytes = 64 * 2 ** 20;

const counts = z.array(z.int().min(0)).max(64);
const manifestSchema = z.strictObject({
  format: z.literal(1),
  /** Of the plan, or of the target's layout: equal for results that hold the same of the same checkpoint. */
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
  /** SHA-256 of the layout's file. */
  layout: z.string().optional(),
});
export type ResultManifest = z.infer<typeof manifestSchema>;

const layoutSchema = z.array(
  z.strictObject({
    name: z.string(),
    parameters: z.array(
      z.tuple([
        z.string(),
        counts,
        z.enum(dtypes),
        z.array(z.tuple([z.string(), counts, counts, counts, z.array(z.int().min(-1)).max(64)])),
      ]),
    ),
  }),
);

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
    await mkdir(path, { recursive: true }).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST" && error.code !== "ENOTDIR")
        throw fileError(error, "make the folder", path);
      throw new TensorBusError(
        "TB_FILE",
        `--out ${path} is a file: name a folder, which is made if there is none`,
        { details: { path, flag: "--out" }, cause: error },
      );
    });
    const folder = new ResultFolder(path);
    const names = force ? [] : await folder.#names();
    const found = names.filter(isOfResult);
    // A journal without a manifest: a run was killed here, and goes on if it is the same.
    if (found.length === 0 || (names.includes(journalName) && !names.includes(manifestName))) return folder;
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

  /** Before the first file takes its final name: what is there is no result any more. */
  async invalidate(): Promise<void> {
    for (const name of [manifestName, layoutName]) await rm(join(this.path, name), { force: true });
  }

  /** All files have their final names: those of an earlier result go, and the manifest says what there is. */
  async complete(
    manifest: Omit<ResultManifest, "format" | "layout">,
    layout: readonly TargetFile[] | undefined,
  ): Promise<void> {
    const names = new Set(manifest.files.map(({ name }) => name));
    for (const name of await this.#names()) {
      if (isOfResult(name) && !names.has(name)) await rm(join(this.path, name));
    }
    const bytes = layout && gzipSync(JSON.stringify(layout.map(layoutMessage)), { level: 6 });
    if (bytes !== undefined) await writeWholeFile(join(this.path, layoutName), bytes);
    const whole: ResultManifest = {
      format: 1,
      ...manifest,
      ...(bytes && { layout: createHash("sha256").update(bytes).digest("hex") }),
    };
    await writeWholeFile(join(this.path, manifestName), `${JSON.stringify(whole, null, 2)}\n`);
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

function isOfResult(name: string): boolean {
  return (
    name === manifestName ||
    name === layoutName ||
    /^(rank-\d+|model-rank-\d+-part-\d+|model-\d{5}-of-\d{5}|model)\.safetensors$/.test(name) ||
    name === "model.safetensors.index.json"
  );
}

function layoutMessage({ name, parameters }: TargetFile): z.infer<typeof layoutSchema>[number] {
  return {
    name,
    parameters: parameters.map(({ name: key, shape, dtype, boxes }) => [
      key,
      [...shape],
      dtype,
      boxes.map(({ tensor, start, length, at, axes }) => [
        tensor,
        [...start],
        [...length],
        [...at],
        [...axes],
      ]),
    ]),
  };
}

/** The manifest of a folder. `TB_FILE` if there is none, or if it is none. */
export async function readManifest(folder: string): Promise<ResultManifest> {
  const path = join(folder, manifestName);
  const parsed = manifestSchema.safeParse(parse(await readTextFile(path, maxManifestBytes)));
  if (parsed.success) return parsed.data;
  throw new TensorBusError("TB_FILE", `${path} is no manifest of a result`, { details: { path } });
}

/** What the files of a result hold. `TB_FILE` if its layout is missing, damaged, or of another result. */
export async function readLayout(folder: string, manifest: ResultManifest): Promise<TargetFile[]> {
  const path = join(folder, layoutName);
  const refuse = (what: string, cause?: unknown) =>
    new TensorBusError("TB_FILE", `${path} ${what}`, { details: { path }, cause });
  const bytes = await readFile(path).catch((error: unknown) => {
    throw fileError(error, "read", path);
  });
  if (createHash("sha256").update(bytes).digest("hex") !== manifest.layout)
    throw refuse("is not of this result");
  let text: string;
  try {
    text = gunzipSync(bytes, { maxOutputLength: 2 ** 30 }).toString();
  } catch (cause) {
    throw refuse("is damaged", cause);
  }
  const parsed = layoutSchema.safeParse(parse(text));
  if (!parsed.success) throw refuse("is no layout of a result");
  return parsed.data.map(({ name, parameters }) => ({
    name,
    metadata: {},
    parameters: parameters.map(([key, shape, dtype, boxes]) => ({
      name: key,
      shape,
      dtype,
      boxes: boxes.map(([tensor, start, length, at, axes]) => ({ tensor, start, length, at, axes })),
    })),
  }));
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
