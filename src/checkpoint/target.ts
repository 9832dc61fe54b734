/** What is written: files of parameters, each made of boxes of the source's tensors. */
import { createHash } from "node:crypto";
import { TensorBusError } from "../errors.ts";
import { type DType, holdingOf, type Run } from "../layout/index.ts";
import type { PlanInput, TensorInput } from "../plan/index.ts";

/**
 * A box of a tensor in a parameter: what lies there from `start` on, `length` long, lies `at` a place of the parameter. For each
 * axis of the parameter `axes` has the tensor's, -1 for one that the tensor lacks; axes that do not ascend permute.
 */
export interface TargetBox {
  readonly tensor: string;
  readonly start: readonly number[];
  readonly length: readonly number[];
  readonly at: readonly number[];
  readonly axes: readonly number[];
}

/** What no box covers is zero. */
export interface TargetParameter {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly boxes: readonly TargetBox[];
  /** The value of a parameter of one number that no tensor has. */
  readonly constant?: number;
}

export interface TargetFile {
  /** Within the folder of the result. */
  readonly name: string;
  readonly parameters: readonly TargetParameter[];
  readonly metadata: Readonly<Record<string, string>>;
}

/** Equal for targets that have the same files. */
export function targetDigest(files: readonly TargetFile[]): string {
  const hash = createHash("sha256");
  const texts = new ListTexts();
  for (const { name, parameters, metadata } of files) {
    hash.update(`${JSON.stringify([name, metadata])}\n`);
    for (const { name: key, shape, dtype, boxes, constant = null } of parameters) {
      const places = boxes.map((box) => texts.box(box)).join();
      hash.update(`[${JSON.stringify(key)},${texts.of(shape)},"${dtype}",[${places}],${constant}]\n`);
    }
  }
  return hash.digest("hex");
}

/** JSON of lists of numbers, each made once as long as there are not too many: tensors of one kind share theirs. */
export class ListTexts {
  readonly #texts = new Map<readonly number[], string>();

  of(list: readonly number[]): string {
    const known = this.#texts.get(list);
    if (known !== undefined) return known;
    const text = `[${list.join()}]`;
    if (this.#texts.size < mostTexts) this.#texts.set(list, text);
    return text;
  }

  /** `[tensor, start, length, at, axes]`. */
  box({ tensor, start, length, at, axes }: TargetBox): string {
    const lists = [start, length, at, axes].map((list) => this.of(list));
    return `[${JSON.stringify(tensor)},${lists.join()}]`;
  }
}

const mostTexts = 2 ** 16;

/** Lists of numbers of which equal ones become one: most tensors of a model are like others. */
export class SharedLists {
  readonly #lists = new Map<string, readonly number[]>();

  share(list: readonly number[]): readonly number[] {
    const key = list.join();
    const known = this.#lists.get(key);
    if (known !== undefined) return known;
    if (this.#lists.size < mostTexts) this.#lists.set(key, list);
    return list;
  }
}

/** What a rank holds of tensors of one kind. */
interface Pattern {
  readonly shape: readonly number[];
  readonly boxes: readonly Omit<TargetBox, "tensor">[];
}

/** What a rank holds of one tensor. Its boxes are made when they are asked for: for all ranks they would take much memory. */
class HeldParameter implements TargetParameter {
  readonly name: string;
  readonly dtype: DType;
  readonly #pattern: Pattern;

  constructor(name: string, dtype: DType, pattern: Pattern) {
    this.name = name;
    this.dtype = dtype;
    this.#pattern = pattern;
  }

  get shape(): readonly number[] {
    return this.#pattern.shape;
  }

  get boxes(): readonly TargetBox[] {
    const tensor = this.name;
    return this.#pattern.boxes.map(({ start, length, at, axes }) => ({ tensor, start, length, at, axes }));
  }
}

/** A file for each rank of the target of a plan, numbered from 0, with what the rank holds of each tensor. */
export function rankFiles(
  input: PlanInput,
  metadata: Readonly<Record<string, string>>,
  digest: string,
): TargetFile[] {
  const ranks = new Set(Object.values(input.pairs).flatMap(({ target }) => [...target.mesh.ranks]));
  const kinds = input.tensors.map(({ pair, shape, target }) => JSON.stringify([pair, shape, target]));
  return [...ranks]
    .sort((a, b) => a - b)
    .map((rank, number) => {
      const patterns = new Map<string, Pattern | undefined>();
      const patternOf = (index: number): Pattern | undefined => {
        const kind = kinds[index]!;
        if (!patterns.has(kind)) patterns.set(kind, makePattern(input, input.tensors[index]!, rank));
        return patterns.get(kind);
      };
      return {
        name: `rank-${number}.safetensors`,
        parameters: input.tensors.flatMap(({ name, dtype, targetDtype = dtype }, index) => {
          const pattern = patternOf(index);
          return pattern === undefined ? [] : [new HeldParameter(name, targetDtype, pattern)];
        }),
        metadata: { format: "pt", ...metadata, "tensorbus.rank": String(number), "tensorbus.plan": digest },
      };
    });
}

function makePattern(input: PlanInput, tensor: TensorInput, rank: number): Pattern | undefined {
  const holding = holdingOf(input.pairs[tensor.pair]!.target, tensor.shape, rank, tensor.target);
  if (holding === undefined) return undefined;
  return { shape: holding.localShape, boxes: boxesOf(tensor.shape, holding.runs) };
}

/** The product of the runs of all dimensions; a tensor without elements has a box too, which says its shape. */
function boxesOf(shape: readonly number[], runs: readonly (readonly Run[])[]): Pattern["boxes"] {
  const axes = runs.map((_, axis) => axis);
  let boxes: { start: number[]; length: number[]; at: number[] }[] = [{ start: [], length: [], at: [] }];
  for (const [dim, found] of runs.entries()) {
    const list = shape[dim] === 0 ? [{ start: 0, length: 0 }] : found;
    let at = 0;
    const places = list.map((run) => {
      const place = { ...run, at };
      at += run.length;
      return place;
    });
    boxes = boxes.flatMap((box) =>
      places.map((run) => ({
        start: [...box.start, run.start],
        length: [...box.length, run.length],
        at: [...box.at, run.at],
      })),
    );
  }
  return boxes.map((box) => ({ ...box, axes }));
}

/** `TB_TENSOR_MISSING` for a box of a tensor that the source has not, `TB_SHAPE` for one beyond its tensor. */
export function requireTensors(
  files: readonly TargetFile[],
  shapeOf: ReadonlyMap<string, readonly number[]>,
  source: string,
): void {
  for (const { parameters } of files) {
    for (const { name, boxes } of parameters) {
      for (const { tensor, start, length } of boxes) {
        const shape = shapeOf.get(tensor);
        const details = { parameter: name, tensor, start, length, shape };
        if (shape === undefined) {
          throw new TensorBusError(
            "TB_TENSOR_MISSING",
            `${source} has no tensor ${tensor}, which ${name} needs`,
            {
              details,
            },
          );
        }
        const fits =
          start.length === shape.length && start.every((at, dim) => at + length[dim]! <= shape[dim]!);
        if (fits) continue;
        throw new TensorBusError(
          "TB_SHAPE",
          `${name} needs [${start}] to [${start.map((at, dim) => at + length[dim]!)}] of tensor ${tensor}, which is [${shape}] in ${source}`,
          { details },
        );
      }
    }
  }
}
