/** The bytes of chunks: from a rank's memory to what travels, and back. */
import { itemSize } from "../../../src/layout/index.ts";
import { move } from "../../../src/memory/kernels.ts";
import type { Program } from "../../../src/plan/planner/program.ts";
import type { TensorBinding } from "../../../src/transport/transport.ts";
import type { ChunkMove, End } from "./program.ts";

export class Payloads {
  readonly #program: Program;
  readonly #bindings: readonly TensorBinding[];

  constructor(program: Program, bindings: readonly TensorBinding[]) {
    this.#program = program;
    this.#bindings = bindings;
  }

  pack({ from, elements, wire }: ChunkMove): Uint8Array {
    const packed = new Uint8Array(elements * itemSize(wire));
    if (elements > 0) move({ bytes: packed, dtype: wire }, this.#elements(from!));
    return packed;
  }

  unpack({ to, elements, wire }: ChunkMove, packed: Uint8Array): void {
    if (elements > 0) move(this.#elements(to!), { bytes: packed, dtype: wire });
  }

  /** Of a rank to itself. */
  copy(chunk: ChunkMove): void {
    if (chunk.elements === 0 || this.#isInPlace(chunk)) return;
    this.unpack(chunk, this.pack(chunk));
  }

  #isInPlace({ from, to }: ChunkMove): boolean {
    const [source, target] = [this.#elements(from!), this.#elements(to!)];
    const same = source.bytes.memory === target.bytes.memory && source.bytes.offset === target.bytes.offset;
    return same && String(source.descriptor) === String(target.descriptor);
  }

  #elements({ buffer, descriptor, dtype }: End) {
    const { tensor, kind } = this.#program.buffers[buffer]!;
    const { memory, offset } = this.#bindings.find((binding) => binding.tensor === tensor)![kind]!;
    return { bytes: { memory, offset }, dtype, descriptor };
  }
}
