/** What a rank brings to a batch: its local tensors, checked against the plan before anything is prepared. */
import { TensorBusError } from "../errors.ts";
import { holdingOf } from "../layout/index.ts";
import type { TensorMemory } from "../memory/memory.ts";
import type { LocalStrides, PlanInput, TensorInput } from "../plan/input/types.ts";
import type { Program } from "../plan/planner/program.ts";
import type { TensorBinding } from "../transport/transport.ts";
import { type BatchView, findAlias } from "./aliases.ts";
import { chunksIntoBuffers, type ProgramChunk } from "./program-chunks.ts";
import { endOf, type StridedBytes, stridedOfDescriptor, stridedOfType } from "./strided.ts";

/** The memory of one tensor on this rank: what it sends from, what it receives into, or both. */
export interface BatchTensor {
  readonly source?: TensorMemory;
  readonly target?: TensorMemory;
  /** Contiguous unless given. */
  readonly strides?: LocalStrides;
}

/** By the tensor's index in the plan's input. */
export type BatchTensors = ReadonlyMap<number, BatchTensor>;

type Side = "source" | "target";
type Layouts = Pick<PlanInput, "pairs" | "tensors">;

/**
 * The bindings of a program. `TB_TENSOR_MISSING` if a tensor that the program touches has no memory, `TB_REGION`
 * if one reaches beyond its memory, `TB_ALIAS` if a target overlaps other memory of the batch; each with the
 * tensor's name.
 */
export function bindBatch(input: Layouts, program: Program, tensors: BatchTensors): TensorBinding[] {
  for (const { tensor, kind } of program.buffers) {
    if (tensors.get(tensor)?.[kind] !== undefined) continue;
    const { name } = input.tensors[tensor]!;
    throw new TensorBusError("TB_TENSOR_MISSING", `tensor ${name} has no ${kind} memory on this rank`, {
      details: { tensor: name, kind, rank: program.rank },
    });
  }
  const views = viewsOf(input, program, tensors);
  const alias = findAlias(views);
  if (alias !== undefined) {
    const [target, other] = [alias.target, alias.other].map(({ tensor }) => input.tensors[tensor]!.name);
    const what = alias.target === alias.other ? "itself" : `the ${alias.other.kind} of ${other}`;
    throw new TensorBusError("TB_ALIAS", `the target of ${target} overlaps ${what}`, {
      details: { target, other, otherKind: alias.other.kind, rank: program.rank },
    });
  }
  return [...tensors].map(([tensor, { source, target }]) => ({
    tensor,
    ...(source === undefined ? {} : { source }),
    ...(target === undefined ? {} : { target }),
  }));
}

/** Every local tensor that this rank holds, whether this program touches it or not. */
function viewsOf(input: Layouts, program: Program, tensors: BatchTensors): BatchView[] {
  const writes = writesByTensor(program, tensors);
  const views: BatchView[] = [];
  for (const [tensor, memories] of tensors) {
    const declared = input.tensors[tensor];
    if (declared === undefined) throw new TypeError(`the plan has no tensor ${tensor}`);
    for (const kind of ["source", "target"] as const) {
      const bytes = localBytes(input, program.rank, declared, kind, memories);
      if (bytes !== undefined) views.push({ tensor, kind, bytes, writes: () => writes().get(tensor) ?? [] });
    }
  }
  return views;
}

/** The bytes of one side of a tensor on this rank; `undefined` if there are none. */
function localBytes(
  input: Layouts,
  rank: number,
  tensor: TensorInput,
  kind: Side,
  memories: BatchTensor,
): StridedBytes | undefined {
  const place = memories[kind];
  if (place === undefined) return undefined;
  const holding = holdingOf(input.pairs[tensor.pair]![kind], tensor.shape, rank, tensor[kind]);
  if (holding === undefined) return undefined;
  const type = kind === "source" ? tensor.dtype : (tensor.targetDtype ?? tensor.dtype);
  const address = place.memory.address + place.offset;
  const bytes = stridedOfType(address, holding.localShape, type, memories.strides?.[kind]);
  if (bytes === undefined) return undefined;
  const end = place.memory.address + place.memory.bytes;
  if (place.offset < 0n || BigInt(endOf(bytes)) > end) {
    throw new TensorBusError("TB_REGION", `the ${kind} of ${tensor.name} ends beyond its memory`, {
      details: {
        tensor: tensor.name,
        kind,
        offset: place.offset,
        bytes: BigInt(endOf(bytes)) - address,
        memoryBytes: place.memory.bytes,
      },
    });
  }
  return bytes;
}

/** What a round really writes, by tensor: all but copies of this rank to the very same elements. Computed when asked. */
function writesByTensor(program: Program, tensors: BatchTensors): () => Map<number, StridedBytes[]> {
  let found: Map<number, StridedBytes[]> | undefined;
  const base = (buffer: number) => {
    const { tensor, kind } = program.buffers[buffer]!;
    const { memory, offset } = tensors.get(tensor)![kind]!;
    return memory.address + offset;
  };
  return () => {
    if (found !== undefined) return found;
    found = new Map();
    for (const chunk of chunksIntoBuffers(program)) {
      if (isNothing(chunk, base)) continue;
      const { tensor } = program.buffers[chunk.destination]!;
      const list = found.get(tensor) ?? [];
      found.set(tensor, list);
      list.push(stridedOfDescriptor(chunk.destinationDescriptor, base(chunk.destination)));
    }
    return found;
  };
}

/** True for a copy whose ends are the same addresses in the same order and type. */
function isNothing(chunk: ProgramChunk, base: (buffer: number) => bigint): boolean {
  const { source, destination, sourceDescriptor: from, destinationDescriptor: to } = chunk;
  return (
    source !== undefined &&
    chunk.sameType &&
    base(source) + from[0]! === base(destination) + to[0]! &&
    from.length === to.length &&
    from.every((word, index) => index === 0 || word === to[index])
  );
}
