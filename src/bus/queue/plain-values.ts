/** Levels of arrays and maps in each other: more than any message of the bus has. */
const maxDepth = 32;

/**
 * Checks that bytes are one MessagePack value of plain data, without making it: an extension could stand for anything (the
 * reader compiles code for records), a count could be larger than what follows, and nesting deeper than the stack. Returns
 * what is wrong, or `undefined`.
 */
export function findNotPlain(bytes: Uint8Array): string | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  /** Values that are still to come, by level. */
  const left: number[] = [1];
  let at = 0;
  const skip = (count: number): boolean => {
    at += count;
    return at <= bytes.length;
  };
  const lengthOf = (size: number): number => {
    const from = at;
    if (!skip(size)) return Number.POSITIVE_INFINITY;
    return size === 1 ? view.getUint8(from) : size === 2 ? view.getUint16(from) : view.getUint32(from);
  };
  const open = (count: number): boolean => {
    // Each value takes a byte at least.
    if (count > bytes.length - at) return false;
    left.push(count);
    return true;
  };
  while (left.length > 0) {
    if (left.at(-1) === 0) {
      left.pop();
      continue;
    }
    left[left.length - 1]! -= 1;
    if (at >= bytes.length) return "it ends too early";
    const kind = bytes[at]!;
    at += 1;
    let fits = true;
    if (kind <= 0x7f || kind >= 0xe0 || kind === 0xc0 || kind === 0xc2 || kind === 0xc3) continue;
    if (kind <= 0x8f) fits = open(2 * (kind & 0x0f));
    else if (kind <= 0x9f) fits = open(kind & 0x0f);
    else if (kind <= 0xbf) fits = skip(kind & 0x1f);
    else if (kind >= 0xc4 && kind <= 0xc6) fits = skip(lengthOf(1 << (kind - 0xc4)));
    else if (kind === 0xca || kind === 0xcb) fits = skip(kind === 0xca ? 4 : 8);
    else if (kind >= 0xcc && kind <= 0xd3) fits = skip(1 << ((kind - 0xcc) & 3));
    else if (kind >= 0xd9 && kind <= 0xdb) fits = skip(lengthOf(1 << (kind - 0xd9)));
    else if (kind === 0xdc || kind === 0xdd) fits = open(lengthOf(kind === 0xdc ? 2 : 4));
    else if (kind === 0xde || kind === 0xdf) fits = open(2 * lengthOf(kind === 0xde ? 2 : 4));
    // How "undefined" is written: one byte of type 0.
    else if (kind === 0xd4 && bytes[at] === 0) fits = skip(2);
    else return `it holds an extension (0x${kind.toString(16)})`;
    if (!fits) return "it ends too early";
    if (left.length > maxDepth) return `it is nested deeper than ${maxDepth} levels`;
  }
  return at === bytes.length ? undefined : `${bytes.length - at} bytes follow it`;
}
