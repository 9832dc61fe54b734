import type { DType } from "../layout/index.ts";
import type { ModelTensor } from "./tensor.ts";

/** Float8 weights in blocks of `[rows, columns]`, each with a float32 scale of its own. */
export interface BlockQuantization {
  readonly block: readonly [number, number];
}

/** Collects the tensors of a model under the names of Hugging Face's modules. */
export class TensorList {
  readonly tensors: ModelTensor[] = [];
  readonly #dtype: DType;
  readonly #quantization: BlockQuantization | undefined;

  constructor(dtype: DType, quantization?: BlockQuantization) {
    this.#dtype = dtype;
    this.#quantization = quantization;
  }

  add(name: string, shape: readonly number[], dtype: DType = this.#dtype): void {
    this.tensors.push({ name, shape, dtype });
  }

  /** The weight of a norm. */
  norm(name: string, width: number): void {
    this.add(`${name}.weight`, [width]);
  }

  /** `torch.nn.Linear`: its weight is (out, in). Quantized where the checkpoint is. */
  linear(name: string, out: number, into: number, bias = false): void {
    if (this.#quantization === undefined) {
      this.add(`${name}.weight`, [out, into]);
    } else {
      const [rows, columns] = this.#quantization.block;
      this.add(`${name}.weight`, [out, into], "float8_e4m3fn");
      this.add(`${name}.weight_scale_inv`, [Math.ceil(out / rows), Math.ceil(into / columns)], "float32");
    }
    if (bias) this.add(`${name}.bias`, [out]);
  }

  /** The three projections of a gated feed-forward block. */
  gatedMlp(name: string, hidden: number, intermediate: number, bias = false): void {
    this.linear(`${name}.gate_proj`, intermediate, hidden, bias);
    this.linear(`${name}.up_proj`, intermediate, hidden, bias);
    this.linear(`${name}.down_proj`, hidden, intermediate, bias);
  }
}
