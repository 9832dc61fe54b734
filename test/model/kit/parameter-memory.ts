import type { ParameterBox, RankParameter } from "../../../src/model/parts/rank.ts";
import type { ModelTensor } from "../../../src/model/tensor.ts";

/** A checkpoint whose every element has a number of its own, from 1 on: 0 is padding, -1 what nobody wrote. */
export function numberedCheckpoint(tensors: readonly ModelTensor[]): Map<string, Int32Array> {
  let next = 1;
  return new Map(
    tensors.map(({ name, shape }) => {
      const values = new Int32Array(product(shape));
      for (let index = 0; index < values.length; index++) values[index] = next++;
      return [name, values];
    }),
  );
}

export const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

export function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length).fill(1);
  for (let dim = shape.length - 2; dim >= 0; dim--) strides[dim] = strides[dim + 1]! * shape[dim + 1]!;
  return strides;
}

/** Pairs of places, element by element: in the tensor, and in the parameter. Written by nothing of the code under test. */
export function* elements(
  box: ParameterBox,
  tensorShape: readonly number[],
  parameterShape: readonly number[],
): Generator<readonly [number, number]> {
  const [from, to] = [stridesOf(tensorShape), stridesOf(parameterShape)];
  const index = box.size.map(() => 0);
  for (let count = product(box.size); count > 0; count--) {
    let source = 0;
    for (const [dim, start] of box.start.entries()) {
      const axis = box.axes.indexOf(dim);
      source += (start + (axis < 0 ? 0 : index[axis]!)) * from[dim]!;
    }
    yield [source, index.reduce((sum, value, axis) => sum + (box.at[axis]! + value) * to[axis]!, 0)];
    for (let axis = index.length - 1; axis >= 0; axis--) {
      if (++index[axis]! < box.size[axis]!) break;
      index[axis] = 0;
    }
  }
}

/** A parameter as its boxes and zero regions fill it; throws if two write one place, or none does. */
export function fillParameter(
  parameter: RankParameter,
  checkpoint: ReadonlyMap<string, Int32Array>,
  shapes: ReadonlyMap<string, readonly number[]>,
): Int32Array {
  const memory = new Int32Array(product(parameter.shape)).fill(-1);
  const write = (at: number, value: number): void => {
    if (memory[at] !== -1) throw new Error(`${parameter.name}: element ${at} is written twice`);
    memory[at] = value;
  };
  for (const box of parameter.boxes) {
    const values = checkpoint.get(box.tensor)!;
    for (const [from, to] of elements(box, shapes.get(box.tensor)!, parameter.shape))
      write(to, values[from]!);
  }
  for (const { at, size } of parameter.zero) {
    const box = { tensor: "", start: at, length: size, at, size, axes: size.map((_, axis) => axis) };
    for (const [, to] of elements(box, parameter.shape, parameter.shape)) write(to, 0);
  }
  if (parameter.constant !== undefined) memory.fill(0);
  if (memory.includes(-1))
    throw new Error(`${parameter.name}: element ${memory.indexOf(-1)} is written by nobody`);
  return memory;
}
