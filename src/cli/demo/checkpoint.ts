import { access, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { makeFolders } from "../../folders.ts";
import { type DType, itemSize } from "../../layout/index.ts";
import { modelTensors } from "../../model/config.ts";
import { createSafetensors } from "../../model/safetensors.ts";
import type { ModelTensor } from "../../model/tensor.ts";

/** A small Llama: the real structure, so that real rules apply to it, at 107 million parameters. */
export const demoConfig = {
  model_type: "llama",
  torch_dtype: "float32",
  hidden_size: 1024,
  intermediate_size: 2816,
  num_hidden_layers: 6,
  num_attention_heads: 16,
  num_key_value_heads: 8,
  vocab_size: 18_000,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
};

/** Rows that four ranks cannot share evenly, and types that are not the weights'. */
const extras: readonly ModelTensor[] = [
  { name: "model.rotary_emb.inv_freq", shape: [33], dtype: "float64" },
  { name: "model.position_ids", shape: [4099], dtype: "int64" },
  { name: "model.vocab_mask", shape: [18_000], dtype: "bool" },
  { name: "value_head.weight", shape: [3, 1024], dtype: "float16" },
];

/** The demo's rules: what a tensor-parallel engine wants of a fully sharded trainer. */
export const demoRules = [
  { match: "(q|k|v|gate|up)_proj|embed_tokens|lm_head", source: ["S(0)"], target: ["S(0)"] },
  { match: "(o|down)_proj", source: ["S(0)"], target: ["S(1)"] },
  { match: ".*", source: ["S(0)"], target: ["R"] },
];

/** A folder that only this user's runs share. */
export function demoFolder(environment: NodeJS.ProcessEnv): string {
  return join(environment["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "tensorbus", "demo");
}

/** The path of the demo's checkpoint; it is made on the first run. */
export async function demoCheckpoint(
  folder: string,
  onBytes: (done: number, total: number) => void,
  model: typeof demoConfig = demoConfig,
): Promise<string> {
  const path = join(folder, "model.safetensors");
  const exists = await access(path).then(
    () => true,
    () => false,
  );
  if (exists) return path;
  makeFolders(folder, 0o700);
  const config = JSON.stringify(model);
  const tensors = [...modelTensors(config), ...extras];
  const total = tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  await using writer = await createSafetensors(path, tensors);
  let done = 0;
  onBytes(done, total);
  for (const [index, tensor] of tensors.entries()) {
    await writer.write(tensor.name, values(tensor, index + 1));
    done += bytesOf(tensor);
    onBytes(done, total);
  }
  await writer.finish();
  await writeFile(join(folder, "config.json"), config);
  return path;
}

function bytesOf({ shape, dtype }: ModelTensor): number {
  return shape.reduce((product, extent) => product * extent, itemSize(dtype));
}

/** The same values on every machine: uniform in [-1, 1) for floats, in range for the others. */
function values(tensor: ModelTensor, seed: number): Uint8Array {
  const count = bytesOf(tensor) / itemSize(tensor.dtype);
  const next = xorshift(seed);
  const array = arrayOf(tensor.dtype, count, next);
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function arrayOf(dtype: DType, count: number, next: () => number): ArrayBufferView {
  switch (dtype) {
    case "float32":
      return new Float32Array(count).map(() => next() / 2 ** 31);
    case "float64":
      return new Float64Array(count).map(() => next() / 2 ** 31);
    case "float16":
      // Sign and ten bits of a fraction below 1, as the type's bits.
      return new Uint16Array(count).map(() => (next() & 0x83ff) | 0x3800);
    case "int64":
      return new BigInt64Array(count).map((_, index) => BigInt(index));
    case "bool":
      return new Uint8Array(count).map(() => next() & 1);
    default:
      throw new TypeError(`the demo cannot make values of ${dtype}`);
  }
}

/** Signed 32-bit integers. */
function xorshift(seed: number): () => number {
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state;
  };
}
