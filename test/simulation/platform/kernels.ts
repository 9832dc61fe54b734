/** In place of `src/memory/kernels.ts`: moves between equal types, in JavaScript. */
import type { Bytes, Elements } from "../../../src/memory/kernels.ts";
import type { HostMemory } from "./host-memory.ts";

export { describeElements } from "../../../src/memory/kernels.ts";

export function move(to: Elements, from: Elements): void {
  if (to.dtype !== from.dtype) throw new Error(`the simulation casts nothing: ${from.dtype} to ${to.dtype}`);
  const [target, source] = [viewOf(to.bytes), viewOf(from.bytes)];
  const [into, outOf] = [runsOf(to, target), runsOf(from, source)];
  let run = 0;
  let place = 0;
  for (const offset of outOf.offsets) {
    for (let done = 0; done < outOf.bytes; ) {
      const at = into.offsets[run];
      if (at === undefined) throw new Error("a move of more elements than there is room for");
      const size = Math.min(into.bytes - place, outOf.bytes - done);
      copy(target, at + place, source, offset + done, size);
      place += size;
      done += size;
      if (place < into.bytes) continue;
      run += 1;
      place = 0;
    }
  }
}

/** Runs are of some elements each: a loop takes less than a view of them. */
function copy(target: Uint8Array, at: number, source: Uint8Array, from: number, bytes: number): void {
  if (bytes > 64) target.set(source.subarray(from, from + bytes), at);
  else for (let index = 0; index < bytes; index++) target[at + index] = source[from + index]!;
}

function viewOf(bytes: Bytes): Uint8Array {
  if (ArrayBuffer.isView(bytes)) return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const { memory, offset = 0n } = bytes;
  const size = bytes.bytes ?? memory.bytes - offset;
  return (memory as unknown as HostMemory).content.subarray(Number(offset), Number(offset + size));
}

interface Runs {
  readonly offsets: readonly number[];
  /** Of each. */
  readonly bytes: number;
}

/** Descriptors are those of programs, which are made once. */
const known = new WeakMap<BigInt64Array, Runs>();

/** Runs of bytes in the order of the elements: `docs/program-format.md`, "Descriptor words". */
function runsOf({ descriptor }: Elements, view: Uint8Array): Runs {
  if (descriptor === undefined) return { offsets: [0], bytes: view.length };
  const remembered = known.get(descriptor);
  if (remembered !== undefined) return remembered;
  const runs = runsIn(Array.from(descriptor, Number));
  known.set(descriptor, runs);
  return runs;
}

function runsIn(words: readonly number[]): Runs {
  const [offset, loops] = words as [number, number];
  let offsets = [offset];
  for (let loop = 0; loop < loops; loop++) {
    const [count, stride] = [words[2 + 2 * loop]!, words[3 + 2 * loop]!];
    offsets = offsets.flatMap((at) => Array.from({ length: count }, (_, step) => at + step * stride));
  }
  return { offsets, bytes: words[2 + 2 * loops]! };
}
