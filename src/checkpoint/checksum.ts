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

/** The checksum of two parts, one behind the other: the second of `bytes` bytes. */
export function joinChecksums(first: number, second: number, bytes: number): number {
  let shifted = first;
  for (let power = 0, rest = bytes; rest > 0; power++, rest = Math.floor(rest / 2)) {
    if (rest % 2 === 1) shifted = apply(zeroBytes[power]!, shifted);
  }
  return (shifted ^ second) >>> 0;
}

/** The checksum of so many zeros. */
export function zeroChecksum(bytes: number): number {
  // The register begins and ends inverted: that of zeros is what they make of all ones, inverted.
  return (joinChecksums(0xffffffff, 0, bytes) ^ 0xffffffff) >>> 0;
}

/** A stretch of a file with its checksum. */
export interface Stretch {
  readonly at: number;
  readonly bytes: number;
  readonly checksum: number;
}

/** The checksum of a file of so many bytes: stretches as they are, zeros between them. They do not overlap. */
export function fileChecksum(stretches: readonly Stretch[], bytes: number): number {
  let [sum, end] = [0, 0];
  for (const stretch of [...stretches].sort((a, b) => a.at - b.at || a.bytes - b.bytes)) {
    sum = joinChecksums(sum, zeroChecksum(stretch.at - end), stretch.at - end);
    sum = joinChecksums(sum, stretch.checksum, stretch.bytes);
    end = stretch.at + stretch.bytes;
  }
  return joinChecksums(sum, zeroChecksum(bytes - end), bytes - end);
}
