/**
 * Flatten: a box of a strided local tensor as the fewest nested loops over runs of contiguous bytes, in the
 * words of `docs/program-format.md`: offset, n, n times (count, stride) from the outermost, run.
 */
import { alloc } from "./arena";
import { i64At, setI64 } from "./words";

/** The words so far. They lie on top of the arena: nothing else may be taken while descriptors are added. */
export let descriptorWords: u32 = 0;

const counts: usize = memory.data(64, 8);
const steps: usize = memory.data(64, 8);

export function startDescriptors(): void {
  descriptorWords = 0;
}

/** Appends the descriptor of a box; strides in elements. Answers the index of its first word. */
export function describe(ndim: u32, offsets: usize, lengths: usize, strides: usize, item: i64): u32 {
  let offset: i64 = 0;
  let run = item;
  let loops: u32 = 0;
  for (let dim = ndim; dim > 0; dim--) {
    const length = i64At(lengths, dim - 1);
    const stride = i64At(strides, dim - 1) * item;
    offset += i64At(offsets, dim - 1) * stride;
    if (length == 1) continue;
    if (loops == 0 && stride == run) {
      run *= length;
    } else if (loops > 0 && stride == i64At(counts, loops - 1) * i64At(steps, loops - 1)) {
      setI64(counts, loops - 1, i64At(counts, loops - 1) * length);
    } else {
      setI64(counts, loops, length);
      setI64(steps, loops++, stride);
    }
  }
  const first = descriptorWords;
  const at = alloc((<usize>(3 + 2 * loops)) << 3);
  setI64(at, 0, offset);
  setI64(at, 1, loops);
  let word: u32 = 2;
  for (let loop = loops; loop > 0; loop--) {
    setI64(at, word++, i64At(counts, loop - 1));
    setI64(at, word++, i64At(steps, loop - 1));
  }
  setI64(at, word, run);
  descriptorWords += 3 + 2 * loops;
  return first;
}
