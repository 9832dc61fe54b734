import { readFileSync } from "node:fs";
import { join } from "node:path";

/** Layouts that vLLM's own loaders made (test/golden/vllm_layouts.jsonl). */
export interface VllmCase {
  readonly case: string;
  readonly family: string;
  readonly arch: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly quant?: {
    readonly method: string;
    readonly activation_scheme: string;
    readonly weight_block_size?: readonly number[];
  };
  readonly hfForm: "checkpoint" | "state_dict";
  readonly parallel: {
    readonly tp: number;
    readonly dp: number;
    readonly pp: number;
    readonly enableExpertParallel: boolean;
    readonly expertPlacement: string;
    readonly redundantExperts: number;
  };
  readonly hfTensors: Readonly<Record<string, readonly number[]>>;
  readonly hfUnused: readonly string[];
  readonly ranks: readonly { readonly params: readonly VllmParameter[] }[];
}

export interface VllmBox {
  readonly hf: string;
  readonly hfStart: readonly number[];
  readonly hfLen: readonly number[];
  readonly at: readonly number[];
  readonly len?: readonly number[];
  readonly transposed?: boolean;
  readonly axes?: readonly number[];
}

export interface VllmParameter {
  readonly name: string;
  readonly aliases?: readonly string[];
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly boxes: readonly VllmBox[];
  readonly zero?: readonly { readonly at: readonly number[]; readonly len: readonly number[] }[];
  readonly const?: readonly { readonly value: number }[];
}

const golden = join(import.meta.dirname, "../../golden");

export function readGolden<T>(name: string): T[] {
  return readFileSync(join(golden, `${name}.jsonl`), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as T);
}

export const vllmCases = readGolden<VllmCase>("vllm_layouts");

/** The config.json of a case; without an element type, as it was recorded. */
export function configOf({ family, arch, config, quant }: VllmCase): string {
  const { configClass: _, ...rest } = config;
  return JSON.stringify({
    model_type: family,
    architectures: [arch],
    ...rest,
    ...(quant !== undefined && {
      quantization_config: {
        quant_method: quant.method,
        activation_scheme: quant.activation_scheme,
        ...(quant.weight_block_size !== undefined && { weight_block_size: quant.weight_block_size }),
      },
    }),
  });
}

/** The preset of a case. */
export function presetOf({ parallel }: VllmCase): string {
  const { tp, dp, pp, enableExpertParallel: ep, expertPlacement, redundantExperts } = parallel;
  return `vllm:tp=${tp},dp=${dp},pp=${pp}${ep ? ",ep" : ""},placement=${expertPlacement},redundant=${redundantExperts}`;
}
