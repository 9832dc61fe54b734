import { stat } from "node:fs/promises";
import { join } from "node:path";
import { type ConfigOptions, type Model, readModel } from "../../model/config.ts";
import type { ModelOptions } from "./model-options.ts";

/** The model of a path. Errors as those of `readModel`. */
export async function loadModel(path: string, options: ModelOptions): Promise<Model> {
  return readModel(await configPath(path), configOptions(options));
}

function configOptions({ dtype, form, mtp, quantized }: ModelOptions): ConfigOptions {
  return {
    ...(dtype !== undefined && { dtype }),
    ...(form !== undefined && { form }),
    ...(mtp !== undefined && { mtp }),
    ...(quantized === false && { quantized }),
  };
}

/** A folder's config.json; any other path as it is. */
async function configPath(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  return found?.isDirectory() ? join(path, "config.json") : path;
}
