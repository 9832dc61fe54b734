/** In place of `src/memory/kernels.ts`: moves between equal types, in JavaScript. */
import type { Bytes, Elements } from "../../../src/memory/kernels.ts";
import type { HostMemory } from "./host-memory.ts";

export { describeElements } from "../../../src/memory/kernels.ts";

export function move(to: Elements, from: Elements): void {
  if (to.dtype !== from.dtype) throw new Error(`the simulation casts nothing: ${from.dtype} to ${to.dtype}`);
  const [target, source] = [viewOf(to.bytes), viewOf(from.bytes)];
  const [into, outOf] = [runsOf(to, target), runsOf(from, source)];
  let at = 0;
  let left = 0;
  let place = 0;
  for (const { offset, bytes } of outOf) {
    for (let done = 0; done < bytes; ) {
      if (left === 0) {
        const next = into.next();
        if (next.done === true) throw new Error("a move of more elements than there is room for");
        at = next.value.offset;
        left = next.value.bytes;
        place = 0;
      }
      const size = Math.min(left, bytes - done);
      target.set(source.subarray(offset + done, offset + done + size), at + place);
      place += size;
      left -= size;
      done += size;
    }
  }
}

function viewOf(bytes: Bytes): Uint8Array {
  if (ArrayBuffer.isView(bytes)) return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const { memory, offset = 0n } = bytes;
  const size = bytes.bytes ?? memory.bytes - offset;
  return (memory as unknown as HostMemory).content.subarray(Number(offset), Number(offset + size));
}

/** Runs of bytes in the order of the elements: `docs/program-format.md`, "Descriptor words". */
function* runsOf({ descriptor }: Elements, view: Uint8Array): Generator<{ offset: number; bytes: number }> {
  if (descriptor === undefined) {
    yield { offset: 0, bytes: view.length };
    return;
  }
  const words = Array.from(descriptor, Number);
  const [offset, loops] = words as [number, number];
  const run = words[2 + 2 * loops]!;
  yield* nested(offset, words, 0, loops, run);
}

function* nested(
  offset: number,
  words: readonly number[],
  loop: number,
  loops: number,
  run: number,
): Generator<{ offset: number; bytes: number }> {
  if (loop === loops) {
    yield { offset, bytes: run };
    return;
  }
  const [count, stride] = [words[2 + 2 * loop]!, words[3 + 2 * loop]!];
  for (let step = 0; step < count; step++) yield* nested(offset + step * stride, words, loop + 1, loops, run);
}
