import type { DType } from "../../layout/index.ts";
import type { ModelTensor } from "../tensor.ts";
import { bodyName, type Head } from "./architecture.ts";
import { evaluate } from "./expression.ts";
import type { Quantization } from "./quantization.ts";
import type { Config, Family, ModelForm, Row } from "./table.ts";

interface Expansion {
  readonly dtype: DType;
  readonly form: ModelForm;
  readonly head: Head;
  /** Classes that a classification's head tells apart. */
  readonly labels: number;
  readonly prediction: boolean;
  readonly quantization: Quantization | undefined;
}

/** The tensors of a family's table for a config, in the order of the model's modules. */
export function expand(family: Family, config: Config, options: Expansion): ModelTensor[] {
  const list = new Expander(family, config, options);
  const rows = family.rows.filter((row) => row.form === undefined || row.form === options.form);
  const first = rows.findIndex(({ name }) => name.includes("{l}"));
  const last = rows.findLastIndex(({ name }) => name.includes("{l}"));
  for (const row of rows.slice(0, first)) list.addOutside(row);
  const layers = config.num_hidden_layers as number;
  const predicted = options.prediction ? list.value(family.predictionLayers ?? "0") : 0;
  for (let layer = 0; layer < layers + predicted; layer++) {
    list.addLayer(rows.slice(first, last + 1), layer, layer >= layers);
  }
  for (const row of rows.slice(last + 1)) list.addOutside(row);
  list.addHead();
  return list.tensors;
}

class Expander {
  readonly tensors: ModelTensor[] = [];
  readonly #family: Family;
  readonly #config: Config;
  readonly #options: Expansion;

  constructor(family: Family, config: Config, options: Expansion) {
    this.#family = family;
    this.#config = config;
    this.#options = options;
  }

  value(expression: string): number {
    return evaluate(expression, (name) => this.#config[name] as number);
  }

  addOutside(row: Row): void {
    if (row.head === true && this.#options.head !== "causal") return;
    if (this.#holds(row.when, false)) this.#add(row, row.name);
  }

  /** The tensors of a layer, module by module: those of one expert together. */
  addLayer(rows: readonly Row[], layer: number, prediction: boolean): void {
    const sparse = this.#family.sparse?.(this.#config, layer) ?? false;
    const count = sparse ? this.value(this.#family.experts ?? "0") : 0;
    const here = rows.filter(
      (row) => (row.prediction !== true || prediction) && this.#holds(row.when, sparse),
    );
    for (let index = 0; index < here.length; index++) {
      const name = here[index]!.name.replace("{l}", String(layer));
      if (!name.includes("{e}")) {
        this.#add(here[index]!, name);
        continue;
      }
      let end = index;
      while (end < here.length && here[end]!.name.includes("{e}")) end++;
      const single = here.slice(index, end);
      for (let expert = 0; expert < count; expert++) {
        for (const row of single) {
          this.#add(row, row.name.replace("{l}", String(layer)).replace("{e}", String(expert)));
        }
      }
      index = end - 1;
    }
  }

  addHead(): void {
    const { head, labels, dtype } = this.#options;
    const hidden = this.value("hidden_size");
    const [name, outputs] = head === "question" ? ["qa_outputs", 2] : ["score", labels];
    if (head === "causal" || head === "none") return;
    this.tensors.push({ name: `${name}.weight`, shape: [outputs, hidden], dtype });
    if (head !== "sequence") this.tensors.push({ name: `${name}.bias`, shape: [outputs], dtype });
  }

  #holds(when: string | undefined, sparse: boolean): boolean {
    if (when === undefined) return true;
    return when.split(" ").every((condition) => {
      const negated = condition.startsWith("!");
      const key = negated ? condition.slice(1) : condition;
      const value = key === "sparse" ? sparse : Boolean(this.#config[key]);
      return value !== negated;
    });
  }

  #add(row: Row, fullName: string): void {
    const name = bodyName(fullName, this.#options.head);
    const shape = row.shape.map((expression) => this.value(expression));
    const { quantization } = this.#options;
    if (row.linear === true && quantization?.takes(name)) {
      this.tensors.push(...quantization.tensors(name, shape));
      return;
    }
    this.tensors.push({ name, shape, dtype: row.dtype ?? this.#options.dtype });
  }
}
