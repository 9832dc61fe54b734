import { type DType, type Holding, holdingOf, itemSize } from "../../layout/index.ts";
import { HostMemory, type TensorMemory } from "../../memory/index.ts";
import type { Box } from "../../model/safetensors.ts";
import type { PlanInput, TensorInput } from "../../plan/input/types.ts";

type Side = "source" | "target";

/** One rank's part of a tensor on one side. */
export interface LocalTensor {
  /** The index in the plan's input. */
  readonly index: number;
  readonly tensor: TensorInput;
  readonly holding: Holding;
  readonly dtype: DType;
  readonly bytes: number;
}

/** A part of a local tensor that is read or written in one piece: whole rows of dimension 0, or all of it. */
export interface Slab {
  /** Bytes from the start of the local tensor. */
  readonly at: number;
  readonly bytes: number;
  readonly shape: readonly number[];
  /** The boxes of the global tensor that fill it, and where in the slab each begins. */
  readonly boxes: readonly { readonly box: Box; readonly at: readonly number[] }[];
}

const alignment = 64n;

/** What a rank holds of every tensor on one side, in the order of the input; nothing for what it does not hold. */
export function localTensors(input: PlanInput, rank: number, side: Side): LocalTensor[] {
  return input.tensors.flatMap((tensor, index) => {
    const holding = holdingOf(input.pairs[tensor.pair]![side], tensor.shape, rank, tensor[side]);
    if (holding === undefined) return [];
    const dtype = side === "source" ? tensor.dtype : (tensor.targetDtype ?? tensor.dtype);
    const elements = holding.localShape.reduce((product, extent) => product * extent, 1);
    return [{ index, tensor, holding, dtype, bytes: elements * itemSize(dtype) }];
  });
}

/** One allocation for all of them; each tensor begins at a multiple of 64 bytes. Untouched pages cost nothing. */
export function allocateTensors(tensors: readonly LocalTensor[]): {
  readonly memory: HostMemory;
  readonly places: ReadonlyMap<number, TensorMemory>;
} {
  let end = 0n;
  const offsets = tensors.map(({ bytes }) => {
    const offset = end;
    end += ((BigInt(bytes) + alignment - 1n) / alignment) * alignment;
    return offset;
  });
  const memory = HostMemory.allocate(end > 0n ? end : alignment);
  return {
    memory,
    places: new Map(tensors.map(({ index }, at) => [index, { memory, offset: offsets[at]! }])),
  };
}

/** Cuts a local tensor into slabs of at most `maxBytes` if its rows allow that, each with the boxes that fill it. */
export function* slabs({ holding, bytes }: LocalTensor, maxBytes: number): Generator<Slab> {
  const { localShape, runs } = holding;
  if (bytes === 0) return;
  if (localShape.length === 0) {
    yield { at: 0, bytes, shape: [], boxes: [{ box: { offsets: [], lengths: [] }, at: [] }] };
    return;
  }
  const rows = localShape[0]!;
  const rowBytes = bytes / rows;
  const step = Math.max(1, Math.floor(maxBytes / rowBytes));
  for (let begin = 0; begin < rows; begin += step) {
    const end = Math.min(begin + step, rows);
    const shape = [end - begin, ...localShape.slice(1)];
    const perDim = runs.map((list, dim) =>
      dim === 0 ? pieces(list, begin, end) : pieces(list, 0, localShape[dim]!),
    );
    yield {
      at: begin * rowBytes,
      bytes: (end - begin) * rowBytes,
      shape,
      boxes: product(perDim).map((parts) => ({
        box: { offsets: parts.map((part) => part.start), lengths: parts.map((part) => part.length) },
        at: parts.map((part) => part.local),
      })),
    };
  }
}

interface Piece {
  readonly start: number;
  readonly length: number;
  /** The position of its beginning, counted from `begin`. */
  readonly local: number;
}

/** The runs between two local positions. */
function pieces(runs: Holding["runs"][number], begin: number, end: number): Piece[] {
  const found: Piece[] = [];
  let position = 0;
  for (const run of runs) {
    const from = Math.max(begin, position);
    const to = Math.min(end, position + run.length);
    if (from < to) found.push({ start: run.start + from - position, length: to - from, local: from - begin });
    position += run.length;
  }
  return found;
}

function product<T>(lists: readonly (readonly T[])[]): T[][] {
  return lists.reduce<T[][]>(
    (tuples, list) => tuples.flatMap((tuple) => list.map((item) => [...tuple, item])),
    [[]],
  );
}
