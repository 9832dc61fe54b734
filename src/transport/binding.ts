import { TensorBusError } from "../errors.ts";
import type { NativeBinding } from "../ffi/session.ts";
import type { Memory, TensorMemory } from "../memory/memory.ts";
import type { Program, ProgramBuffer } from "../plan/planner/program.ts";
import type { TensorBinding } from "./transport.ts";

/**
 * The memory of every buffer of a program, in the order of its buffer table. `TB_TENSOR_MISSING` if a buffer has
 * none, `TB_REGION` if it lies in none that is registered or reaches beyond its end. `memories` are those that are,
 * with their addresses.
 */
export function bindProgram(
  program: Program,
  bindings: readonly TensorBinding[],
  { rank, memories }: { readonly rank: number; readonly memories: ReadonlyMap<Memory, bigint> },
): NativeBinding[] {
  if (program.rank !== rank) {
    throw new TensorBusError(
      "TB_PLAN_MISMATCH",
      `the program is for rank ${program.rank}, but this is rank ${rank}`,
      {
        details: { rank, program: program.rank },
      },
    );
  }
  const byTensor = new Map(bindings.map((binding) => [binding.tensor, binding]));
  return program.buffers.map((buffer) => {
    const place = byTensor.get(buffer.tensor)?.[buffer.kind];
    if (place === undefined) {
      throw new TensorBusError("TB_TENSOR_MISSING", `tensor ${buffer.tensor} has no ${buffer.kind} memory`, {
        details: { tensor: buffer.tensor, kind: buffer.kind },
      });
    }
    return bindBuffer(buffer, place, memories);
  });
}

function bindBuffer(
  buffer: ProgramBuffer,
  { memory, offset }: TensorMemory,
  memories: ReadonlyMap<Memory, bigint>,
): NativeBinding {
  const details = {
    tensor: buffer.tensor,
    kind: buffer.kind,
    offset,
    span: buffer.span,
    memoryBytes: memory.bytes,
  };
  const address = memories.get(memory);
  if (address === undefined) {
    throw new TensorBusError("TB_REGION", `tensor ${buffer.tensor} lies in memory that is not registered`, {
      details,
    });
  }
  if (offset < 0n || offset > memory.bytes || buffer.span > memory.bytes - offset) {
    throw new TensorBusError("TB_REGION", `tensor ${buffer.tensor} ends beyond its memory`, { details });
  }
  return { address: address + offset, bytes: memory.bytes - offset };
}
