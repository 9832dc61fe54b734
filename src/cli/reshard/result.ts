/**
 * The folder of a result: a file for each target rank, and a manifest that says which files belong together. The manifest is
 * written last and removed first, so that a folder without one is no result, and files of two results never look like one.
 */
import { mkdir, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { TensorBusError } from "../../errors.ts";
import { fileError, readTextFile, writeWholeFile } from "../../model/files.ts";

const manifestName = "tensorbus-manifest.json";
const maxManifestBytes = 256 * 2 ** 20;

export interface ResultManifest {
  readonly format: 1;
  /** Digest of the plan that the files were made by. */
  readonly plan: string;
  readonly checkpoint: string;
  readonly files: readonly { readonly name: string; readonly rank: number; readonly bytes: number }[];
}

export class ResultFolder {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /**
   * Makes the folder, if there is none. `TB_EXISTS` if it holds an earlier result, or files of one, unless `force` is to
   * replace it; `TB_FILE` if it cannot be a folder.
   */
  static async open(path: string, force: boolean): Promise<ResultFolder> {
    await mkdir(path, { recursive: true }).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST" && error.code !== "ENOTDIR")
        throw fileError(error, "make the folder", path);
      throw new TensorBusError(
        "TB_FILE",
        `--out ${path} is a file: name a folder, which is made if there is none`,
        {
          details: { path, flag: "--out" },
          cause: error,
        },
      );
    });
    const folder = new ResultFolder(path);
    const found = force ? [] : await folder.#resultFiles();
    if (found.length === 0) return folder;
    const plan = await folder.#earlierPlan();
    const what =
      plan === undefined ? "files of an earlier result" : `an earlier result, of plan ${plan.slice(0, 16)}`;
    throw new TensorBusError(
      "TB_EXISTS",
      `--out ${path} holds ${what} (${found[0]}): name another folder, or replace all of it by --force`,
      { details: { path, files: found, plan } },
    );
  }

  fileOf(rank: number): string {
    return join(this.path, `rank-${rank}.safetensors`);
  }

  /** Before the first file takes its final name: what is there is no result any more. */
  async invalidate(): Promise<void> {
    await rm(join(this.path, manifestName), { force: true });
  }

  /** All files have their final names: those of an earlier result go, and the manifest says what there is. */
  async complete(plan: string, checkpoint: string, ranks: readonly number[]): Promise<void> {
    const names = new Map(ranks.map((rank) => [`rank-${rank}.safetensors`, rank]));
    for (const name of await this.#resultFiles()) {
      if (!names.has(name)) await rm(join(this.path, name));
    }
    const files = await Promise.all(
      [...names].map(async ([name, rank]) => ({
        name,
        rank,
        bytes: (await stat(join(this.path, name))).size,
      })),
    );
    const manifest: ResultManifest = { format: 1, plan, checkpoint, files };
    await writeWholeFile(join(this.path, manifestName), `${JSON.stringify(manifest, null, 2)}\n`);
  }

  /** The manifest and the files of ranks that stand in the folder, whoever wrote them. */
  async #resultFiles(): Promise<string[]> {
    const names = await readdir(this.path).catch((error: unknown) => {
      throw fileError(error, "read the folder", this.path);
    });
    return names.filter((name) => name === manifestName || /^rank-\d+\.safetensors$/.test(name)).sort();
  }

  async #earlierPlan(): Promise<string | undefined> {
    try {
      const text = await readTextFile(join(this.path, manifestName), maxManifestBytes);
      const { plan } = JSON.parse(text) as Partial<ResultManifest>;
      return typeof plan === "string" ? plan : undefined;
    } catch {
      return undefined;
    }
  }
}
