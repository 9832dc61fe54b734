/** What is written: files of parameters, each made of boxes of the source's tensors. */
import { createHash } from "node:crypto";
import { TensorBusError } from "../errors.ts";
import { type DType, holdingOf, type Run } from "../layout/index.ts";
import type { ModelTensor } from "../model/tensor.ts";
import type { PlanInput, TensorInput } from "../plan/index.ts";

/**
 * A box of some tensor in a parameter: what lies there from `start` on, `length` long, lies `at` a place of the parameter. For each
 * axis of the parameter `axes` has the tensor's, -1 for one that the tensor lacks; axes that do not ascend permute.
 */
export interface BoxPlace {
  readonly start: readonly number[];
  readonly length: readonly number[];
  readonly at: readonly number[];
  readonly axes: readonly number[];
}

export interface TargetBox extends BoxPlace {
  readonly tensor: string;
}

/** What no box covers is zero. */
export interface TargetParameter {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly boxes: readonly TargetBox[];
  /** The places of the boxes, if all are of the tensor that has the parameter's name: parameters of one kind share them. */
  readonly places?: readonly BoxPlace[];
  /** The value of a parameter of one number that no tensor has. */
  readonly constant?: number;
}

/** Calls back for each box of a parameter, in their order. There may be a million parameters: no box is made for it. */
export function eachBox(parameter: TargetParameter, visit: (tensor: string, place: BoxPlace) => void): void {
  const { name, places } = parameter;
  if (places === undefined) for (const box of parameter.boxes) visit(box.tensor, box);
  else for (const place of places) visit(name, place);
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
  const texts = new ParameterTexts();
  for (const { name, parameters, metadata } of files) {
    hash.update(`${JSON.stringify([name, metadata])}\n`);
    let text = "";
    for (const parameter of parameters) {
      text += `[${texts.parameter(parameter)},${parameter.constant ?? null}]\n`;
      if (text.length < hashedTogether) continue;
      hash.update(text);
      text = "";
    }
    hash.update(text);
  }
  return hash.digest("hex");
}

const hashedTogether = 2 ** 16;

/** JSON of parameters. Text of places that many parameters share is made once; so is that of lists, up to a bound. */
export class ParameterTexts {
  readonly #texts = new Map<readonly number[], string>();
  readonly #places = new Map<BoxPlace, string>();

  /** `NAME,SHAPE,TYPE,[BOX…]`, each box as `[TENSOR,START,LENGTH,AT,AXES]`. */
  parameter(parameter: TargetParameter): string {
    const { name, shape, dtype, places } = parameter;
    const key = JSON.stringify(name);
    let boxes = "";
    if (places === undefined) {
      for (const box of parameter.boxes)
        boxes += `${boxes && ","}[${JSON.stringify(box.tensor)},${this.#listsOf(box)}]`;
    } else for (const place of places) boxes += `${boxes && ","}[${key},${this.#ofShared(place)}]`;
    return `${key},${this.#of(shape)},"${dtype}",[${boxes}]`;
  }

  #ofShared(place: BoxPlace): string {
    const known = this.#places.get(place);
    if (known !== undefined) return known;
    const text = this.#listsOf(place);
    this.#places.set(place, text);
    return text;
  }

  #listsOf({ start, length, at, axes }: BoxPlace): string {
    return `${this.#of(start)},${this.#of(length)},${this.#of(at)},${this.#of(axes)}`;
  }

  #of(list: readonly number[]): string {
    const known = this.#texts.get(list);
    if (known !== undefined) return known;
    const text = `[${list.join()}]`;
    if (this.#texts.size < mostTexts) this.#texts.set(list, text);
    return text;
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

/** What a file holds of tensors of one kind. */
export interface Pattern {
  readonly shape: readonly number[];
  readonly places: readonly BoxPlace[];
}

/** What a file holds of one tensor. Its boxes are made when they are asked for: for all ranks they would take much memory. */
export class HeldParameter implements TargetParameter {
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

  get places(): readonly BoxPlace[] {
    return this.#pattern.places;
  }

  get boxes(): readonly TargetBox[] {
    return this.places.map((place) => ({ tensor: this.name, ...place }));
  }
}

/** A file for each rank of the target of a plan, numbered from 0, with what the rank holds of each tensor. */
export function rankFiles(
  input: PlanInput,
  metadata: Readonly<Record<string, string>>,
  digest: string,
): TargetFile[] {
  const ranks = new Set(Object.values(input.pairs).flatMap(({ target }) => [...target.mesh.ranks]));
  const kinds = kindsOf(input);
  return [...ranks]
    .sort((a, b) => a - b)
    .map((rank, number) => {
      const patterns = kinds.examples.map((example) => makePattern(input, example, rank));
      const parameters: TargetParameter[] = [];
      for (const [index, { name, dtype, targetDtype = dtype }] of input.tensors.entries()) {
        const pattern = patterns[kinds.of[index]!];
        if (pattern !== undefined) parameters.push(new HeldParameter(name, targetDtype, pattern));
      }
      const name = `rank-${number}.safetensors`;
      return {
        name,
        parameters,
        metadata: {
          format: "pt",
          ...metadata,
          "tensorbus.file": name,
          "tensorbus.rank": String(number),
          "tensorbus.plan": digest,
        },
      };
    });
}

/** Tensors of one pair and shape are cut alike: the kind of each by its number, and one tensor of each kind. */
function kindsOf({ tensors }: PlanInput): {
  readonly of: readonly number[];
  readonly examples: readonly TensorInput[];
} {
  const numbers = new Map<string, number>();
  const examples: TensorInput[] = [];
  const of = tensors.map((tensor) => {
    const { pair, shape, target } = tensor;
    const text = `${JSON.stringify(target)} ${shape.join()} ${pair}`;
    const known = numbers.get(text);
    if (known !== undefined) return known;
    numbers.set(text, examples.length);
    return examples.push(tensor) - 1;
  });
  return { of, examples };
}

function makePattern(input: PlanInput, tensor: TensorInput, rank: number): Pattern | undefined {
  const holding = holdingOf(input.pairs[tensor.pair]!.target, tensor.shape, rank, tensor.target);
  if (holding === undefined) return undefined;
  return { shape: holding.localShape, places: placesOf(tensor.shape, holding.runs) };
}

/** The product of the runs of all dimensions; a tensor without elements has a box too, which says its shape. */
function placesOf(shape: readonly number[], runs: readonly (readonly Run[])[]): BoxPlace[] {
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

/** Tensors by their names, and their numbers. Files mostly ask for them in their order, and then nothing is searched. */
export class NumberedTensors<T extends { readonly name: string }> {
  readonly #tensors: readonly T[];
  #numbers: ReadonlyMap<string, number> | undefined;
  #next = 0;

  constructor(tensors: readonly T[]) {
    this.#tensors = tensors;
  }

  of(name: string): T | undefined {
    return this.#tensors[this.numberOf(name) ?? -1];
  }

  numberOf(name: string): number | undefined {
    const number = this.#tensors[this.#next]?.name === name ? this.#next : this.#search(name);
    if (number !== undefined) this.#next = (number + 1) % this.#tensors.length;
    return number;
  }

  #search(name: string): number | undefined {
    this.#numbers ??= new Map(this.#tensors.map((tensor, number) => [tensor.name, number]));
    return this.#numbers.get(name);
  }
}

/** `TB_TENSOR_MISSING` for a box of a tensor that the source has not, `TB_SHAPE` for one beyond its tensor. */
export function requireTensors(
  files: readonly TargetFile[],
  tensors: NumberedTensors<Pick<ModelTensor, "name" | "shape">>,
  source: string,
): void {
  for (const { parameters } of files) {
    for (const parameter of parameters) {
      eachBox(parameter, (tensor, place) => {
        const shape = tensors.of(tensor)?.shape;
        if (shape === undefined || !isWithin(place, shape))
          throw unfit(parameter.name, tensor, place, shape, source);
      });
    }
  }
}

function isWithin({ start, length }: BoxPlace, shape: readonly number[]): boolean {
  if (start.length !== shape.length) return false;
  for (let dim = 0; dim < shape.length; dim++) if (start[dim]! + length[dim]! > shape[dim]!) return false;
  return true;
}

function unfit(
  parameter: string,
  tensor: string,
  { start, length }: BoxPlace,
  shape: readonly number[] | undefined,
  source: string,
): TensorBusError {
  const details = { parameter, tensor, start, length, shape };
  if (shape === undefined) {
    const what = `${source} has no tensor ${tensor}, which ${parameter} needs`;
    return new TensorBusError("TB_TENSOR_MISSING", what, { details });
  }
  return new TensorBusError(
    "TB_SHAPE",
    `${parameter} needs [${start}] to [${start.map((at, dim) => at + length[dim]!)}] of tensor ${tensor}, which is [${shape}] in ${source}`,
    { details },
  );
}
