/** Levels of arrays and maps in each other: more than any message of the bus has. */
const maxDepth = 32;

const tooShort = "it ends too early";

/** How many values are still to come on each level below the one that is looked at. No call leaves anything here. */
const waiting = new Float64Array(maxDepth);

/** A number in that many bytes, which must be there. */
function readCount(bytes: Uint8Array, at: number, size: number): number {
  let count = 0;
  for (let i = at; i < at + size; i++) count = count * 256 + bytes[i]!;
  return count;
}

/**
 * Checks that bytes are one MessagePack value of plain data, without making it: an extension could stand for anything (the
 * reader compiles code for records), a count could be larger than what follows, and nesting deeper than the stack. Returns
 * what is wrong, or `undefined`. Every command and every result is looked at so: it makes nothing on the heap.
 */
export function findNotPlain(bytes: Uint8Array): string | undefined {
  const end = bytes.length;
  let at = 0;
  let depth = 0;
  let left = 1;
  for (;;) {
    while (left === 0) {
      if (depth === 0) return at === end ? undefined : `${end - at} bytes follow it`;
      depth -= 1;
      left = waiting[depth]!;
    }
    left -= 1;
    if (at >= end) return tooShort;
    const kind = bytes[at]!;
    at += 1;
    if (kind <= 0x7f || kind >= 0xe0) continue;
    /** Bytes of the value or, if it has parts, of their count. */
    let size = 0;
    let parts = -1;
    if (kind >= 0xa0 && kind <= 0xbf) size = kind & 0x1f;
    else if (kind <= 0x8f) parts = 2 * (kind & 0x0f);
    else if (kind <= 0x9f) parts = kind & 0x0f;
    else if (kind === 0xc0 || kind === 0xc2 || kind === 0xc3) continue;
    else if (kind >= 0xcc && kind <= 0xd3) size = 1 << ((kind - 0xcc) & 3);
    else if (kind === 0xca || kind === 0xcb) size = kind === 0xca ? 4 : 8;
    else if ((kind >= 0xc4 && kind <= 0xc6) || (kind >= 0xd9 && kind <= 0xdb)) {
      const bytesOfCount = 1 << (kind - (kind <= 0xc6 ? 0xc4 : 0xd9));
      if (at + bytesOfCount > end) return tooShort;
      size = bytesOfCount + readCount(bytes, at, bytesOfCount);
    } else if (kind >= 0xdc && kind <= 0xdf) {
      size = (kind & 1) === 0 ? 2 : 4;
      if (at + size > end) return tooShort;
      parts = (kind <= 0xdd ? 1 : 2) * readCount(bytes, at, size);
    }
    // How "undefined" is written: one byte of type 0.
    else if (kind === 0xd4 && bytes[at] === 0) size = 2;
    else return `it holds an extension (0x${kind.toString(16)})`;
    at += size;
    if (at > end) return tooShort;
    if (parts < 0) continue;
    // Each part takes a byte at least.
    if (parts > end - at) return tooShort;
    if (depth + 2 > maxDepth) return `it is nested deeper than ${maxDepth} levels`;
    waiting[depth] = left;
    depth += 1;
    left = parts;
  }
}
