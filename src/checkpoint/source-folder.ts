/** Folders of files that others have written without saying how they belong together: their names say it. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { TensorBusError } from "../errors.ts";
import { readModel } from "../model/config.ts";
import { fileError } from "../model/files.ts";
import { type CheckpointSource, safetensorsSource } from "./source.ts";
import { layoutSource, type RankParts } from "./source-result.ts";
import { engineTarget } from "./target-engine.ts";

const shardName = /^(.*-)(\d{5})-of-(\d{5})\.safetensors$/;
const rankName = /^model-rank-(\d+)-part-(\d+)\.safetensors$/;

/**
 * The checkpoint of a folder with shards that have no index (`model-00001-of-00003.safetensors`), or with the sharded state of vLLM
 * (`model-rank-0-part-0.safetensors`); `undefined` if it holds neither. `TB_CHECKPOINT` if one of them is missing, a tensor is in
 * two shards, or the state is not the one of the model that `config.json` describes.
 */
export async function folderSource(folder: string, config: string): Promise<CheckpointSource | undefined> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw fileError(error, "read the folder", folder);
  });
  const shards = names.filter((name) => shardName.test(name)).sort();
  if (shards.length > 0) return shardsSource(folder, shards);
  const ranks = names.filter((name) => rankName.test(name)).sort();
  return ranks.length > 0 ? shardedStateSource(folder, ranks, config) : undefined;
}

async function shardsSource(folder: string, names: readonly string[]): Promise<CheckpointSource> {
  const found = names.map((name) => shardName.exec(name)!);
  const [, prefix, , count] = found[0]!;
  const isOne = found.every((match) => match[1] === prefix && match[3] === count);
  if (!isOne || names.length !== Number(count)) {
    const what = isOne ? `${names.length} of ${Number(count)} shards` : "shards of more than one checkpoint";
    throw refuse(folder, `it holds ${what}, and no index: download the rest, or name one file`, {
      files: names,
    });
  }
  const tensors = new Map<string, CheckpointSource["tensors"][number]>();
  const files: string[] = [];
  let metadata: CheckpointSource["metadata"] = {};
  for (const name of names) {
    const source = await safetensorsSource(join(folder, name));
    for (const { boxes, ...tensor } of source.tensors) {
      if (tensors.has(tensor.name))
        throw refuse(folder, `tensor ${tensor.name} is in two of its shards`, { tensor: tensor.name });
      tensors.set(tensor.name, {
        ...tensor,
        boxes: boxes.map((box) => ({ ...box, file: box.file + files.length })),
      });
    }
    files.push(...source.files);
    metadata = { ...source.metadata, ...metadata };
  }
  return { path: folder, files, tensors: [...tensors.values()], metadata, unlisted: 0 };
}

/** What the loader of such files would put together; whether experts are dealt or cut is seen by what fits. */
async function shardedStateSource(
  folder: string,
  names: readonly string[],
  config: string,
): Promise<CheckpointSource> {
  const parts = new Map<number, string[]>();
  for (const name of names) {
    const rank = Number(rankName.exec(name)![1]);
    parts.set(rank, [...(parts.get(rank) ?? []), join(folder, name)]);
  }
  const tp = parts.size;
  const missing = Array.from({ length: tp }, (_, rank) => rank).find((rank) => !parts.has(rank));
  if (missing !== undefined)
    throw refuse(folder, `it holds files of ${tp} ranks, and none of rank ${missing}`, { rank: missing });
  const model = await readModel(config);
  let failure: unknown;
  for (const preset of [`vllm:tp=${tp}`, `vllm:tp=${tp},ep`]) {
    try {
      const { files } = engineTarget(preset, model);
      const ranks = files.map(({ parameters }, rank): RankParts => ({ paths: parts.get(rank)!, parameters }));
      return await layoutSource(folder, ranks);
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code === "TB_FILE") throw error;
      failure ??= error;
    }
  }
  const why = failure instanceof Error ? failure.message : String(failure);
  throw refuse(
    folder,
    `it is not a sharded state of the model that ${config} describes: ${why}`,
    { config },
    failure,
  );
}

function refuse(
  folder: string,
  what: string,
  details: Readonly<Record<string, unknown>>,
  cause?: unknown,
): TensorBusError {
  return new TensorBusError("TB_CHECKPOINT", `${folder}: ${what}`, {
    details: { path: folder, ...details },
    cause,
  });
}
