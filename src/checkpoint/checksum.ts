/** CRC-32C of a file from those of its parts: what was written is summed up without reading it again. */

/** Castagnoli's polynomial, its bits reversed. */
const polynomial = 0x82f63b78;

/** A linear map of 32 bits: the image of each bit. */
type Matrix = Uint32Array;

function apply(matrix: Matrix, vector: number): number {
  let sum = 0;
  for (let bit = 0; vector !== 0; bit++, vector >>>= 1) if ((vector & 1) !== 0) sum ^= matrix[bit]!;
  return sum >>> 0;
}

function square(matrix: Matrix): Matrix {
  return Uint32Array.from(matrix, (image) => apply(matrix, image));
}

/** What one zero byte does to the register, and what 2, 4, 8, … of them do. */
const zeroBytes: Matrix[] = (() => {
  const oneBit = Uint32Array.from({ length: 32 }, (_, bit) => (bit === 0 ? polynomial : 1 << (bit - 1)));
  const oneByte = square(square(square(oneBit)));
  const powers = [oneByte];
  while (powers.length < 53) powers.push(square(powers.at(-1)!));
  return powers;
})();

/** What so many zero bytes do, for the few lengths that come again and again. */
const shifts = new Map<number, Matrix>();
const mostShifts = 1024;

function shift(first: number, bytes: number): number {
  const known = shifts.get(bytes);
  if (known !== undefined) return apply(known, first);
  const of = (vector: number) => {
    let shifted = vector;
    for (let power = 0, rest = bytes; rest > 0; power++, rest = Math.floor(rest / 2)) {
      if (rest % 2 === 1) shifted = apply(zeroBytes[power]!, shifted);
    }
    return shifted;
  };
  if (shifts.size >= mostShifts) return of(first);
  const matrix = Uint32Array.from({ length: 32 }, (_, bit) => of((1 << bit) >>> 0));
  shifts.set(bytes, matrix);
  return apply(matrix, first);
}

/** The checksum of two parts, one behind the other: the second of `bytes` bytes. */
export function joinChecksums(first: number, second: number, bytes: number): number {
  return (shift(first, bytes) ^ second) >>> 0;
}

/** The checksum of so many zeros. */
export function zeroChecksum(bytes: number): number {
  // The register begins and ends inverted: that of zeros is what they make of all ones, inverted.
  return (joinChecksums(0xffffffff, 0, bytes) ^ 0xffffffff) >>> 0;
}
