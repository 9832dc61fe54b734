/** What is written: files of parameters, each made of boxes of the source's tensors. */
import { createHash } from "node:crypto";
import { TensorBusError } from "../errors.ts";
import { type DType, holdingOf, type Run } from "../layout/index.ts";
import type { PlanInput } from "../plan/index.ts";

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
  for (const { name, parameters, metadata } of files) {
    hash.update(`${JSON.stringify([name, metadata])}\n`);
    for (const { name: key, shape, dtype, boxes, constant } of parameters) {
      const places = boxes.map(({ tensor, start, length, at, axes }) => [tensor, start, length, at, axes]);
      hash.update(`${JSON.stringify([key, shape, dtype, places, constant ?? null])}\n`);
    }
  }
  return hash.digest("hex");
}

/** A file for each rank of the target of a plan, numbered from 0, with what the rank holds of each tensor. */
export function rankFiles(
  input: PlanInput,
  metadata: Readonly<Record<string, string>>,
  digest: string,
): TargetFile[] {
  const ranks = new Set(Object.values(input.pairs).flatMap(({ target }) => [...target.mesh.ranks]));
  return [...ranks]
    .sort((a, b) => a - b)
    .map((rank, number) => ({
      name: `rank-${number}.safetensors`,
      parameters: input.tensors.flatMap((tensor) => {
        const layout = input.pairs[tensor.pair]!.target;
        const holding = holdingOf(layout, tensor.shape, rank, tensor.target);
        if (holding === undefined) return [];
        return [
          {
            name: tensor.name,
            shape: holding.localShape,
            dtype: tensor.targetDtype ?? tensor.dtype,
            boxes: boxesOf(tensor.name, tensor.shape, holding.runs),
          },
        ];
      }),
      metadata: { format: "pt", ...metadata, "tensorbus.rank": String(number), "tensorbus.plan": digest },
    }));
}

/** The product of the runs of all dimensions; a tensor without elements has a box too, which says its shape. */
function boxesOf(tensor: string, shape: readonly number[], runs: readonly (readonly Run[])[]): TargetBox[] {
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
  return boxes.map((box) => ({ tensor, axes, ...box }));
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
