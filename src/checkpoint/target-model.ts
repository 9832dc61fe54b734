/** One checkpoint again, as `save_pretrained` writes it: shards of 5 GB with an index, or one file. */

import { bytesOf } from "../layout/index.ts";
import type { SourceTensor } from "./source.ts";
import { HeldParameter, type Pattern, type TargetFile } from "./target.ts";

/** The most bytes of a shard, unless one tensor has more. */
const shardBytes = 5 * 10 ** 9;

interface ModelTarget {
  readonly files: readonly TargetFile[];
  /** The text of `model.safetensors.index.json`; none for one file. */
  readonly index: string | undefined;
}

/** All tensors, whole, in their order and types. */
export function modelTarget(tensors: readonly SourceTensor[], most = shardBytes): ModelTarget {
  const shards: SourceTensor[][] = [[]];
  let filled = 0;
  let total = 0;
  for (const tensor of tensors) {
    const bytes = Number(
      bytesOf(
        tensor.dtype,
        tensor.shape.reduce((product, extent) => product * BigInt(extent), 1n),
      ),
    );
    if (filled + bytes > most && shards.at(-1)!.length > 0) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)!.push(tensor);
    filled += bytes;
    total += bytes;
  }
  const nameOf = (shard: number) =>
    shards.length === 1
      ? "model.safetensors"
      : `model-${digits(shard + 1)}-of-${digits(shards.length)}.safetensors`;
  const patterns = new Map<string, Pattern>();
  const patternOf = (shape: readonly number[]): Pattern => {
    const text = shape.join();
    const known = patterns.get(text);
    if (known !== undefined) return known;
    const pattern = wholePattern(shape);
    patterns.set(text, pattern);
    return pattern;
  };
  const files = shards.map(
    (list, shard): TargetFile => ({
      name: nameOf(shard),
      metadata: { format: "pt" },
      parameters: list.map(({ name, shape, dtype }) => new HeldParameter(name, dtype, patternOf(shape))),
    }),
  );
  if (shards.length === 1) return { files, index: undefined };
  const weightMap = Object.fromEntries(
    shards.flatMap((list, shard) => list.map(({ name }) => [name, nameOf(shard)])),
  );
  const index = { metadata: { total_size: total }, weight_map: weightMap };
  return { files, index: `${JSON.stringify(index, null, 2)}\n` };
}

function wholePattern(shape: readonly number[]): Pattern {
  const zeros = shape.map(() => 0);
  return { shape, places: [{ start: zeros, length: shape, at: zeros, axes: [...shape.keys()] }] };
}

function digits(number: number): string {
  return String(number).padStart(5, "0");
}
