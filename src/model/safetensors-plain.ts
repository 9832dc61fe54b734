/**
 * Headers as their writers write them, read in one pass: checking one for all that JSON allows takes four, and result files of a
 * hundred thousand tensors, one for each rank, are read again. What is written in any other way is left to the general reader.
 */

/** An entry of a header whose text is plain: no space, no escape, its three fields in their order. */
interface PlainEntry {
  readonly name: string;
  readonly dtype: string;
  /** One list for all entries that have the same. */
  readonly shape: readonly number[];
  readonly offsets: readonly [begin: number, end: number];
}

interface PlainHeader {
  readonly entries: readonly PlainEntry[];
  /** The JSON of the metadata, which may be anything. */
  readonly metadata: string | undefined;
}

const metadataKey = '"__metadata__":';
const beforeKind = '":{"dtype":"';
const count = "(?:0|[1-9]\\d{0,14})";
/** What stands between: an element type and the sizes of a shape. */
const kindText = new RegExp(`^(\\w+)","shape":\\[((?:${count}(?:,${count})*)?)$`);
const offsetsText = new RegExp(`\\],"data_offsets":\\[(${count}),(${count})\\]\\}`, "y");
/** A type and a shape that take more are not plain. */
const longestKind = 1024;

/** `undefined` if the text is not plain throughout, or names anything twice. */
export function readPlainHeader(text: string): PlainHeader | undefined {
  if (!text.startsWith("{")) return undefined;
  const kinds = new Map<string, Pick<PlainEntry, "dtype" | "shape">>();
  const names = new Set<string>();
  const entries: PlainEntry[] = [];
  let metadata: string | undefined;
  for (let at = 1; ; at++) {
    if (text.startsWith(metadataKey, at)) {
      const begin = at + metadataKey.length;
      at = endOfFlat(text, begin);
      if (metadata !== undefined || at < 0) return undefined;
      metadata = text.slice(begin, at);
    } else {
      const name = text[at] === '"' ? text.slice(at + 1, text.indexOf('"', at + 1)) : undefined;
      if (name === undefined || isEscaped(name) || names.has(name)) return undefined;
      names.add(name);
      at += 1 + name.length;
      if (!text.startsWith(beforeKind, at)) return undefined;
      const end = text.indexOf("]", at);
      if (end < 0 || end > at + longestKind) return undefined;
      const written = text.slice(at + beforeKind.length, end);
      const kind = kinds.get(written) ?? kindOf(written);
      offsetsText.lastIndex = end;
      const offsets = offsetsText.exec(text);
      if (kind === undefined || offsets === null) return undefined;
      if (kinds.size < mostKinds) kinds.set(written, kind);
      entries.push({ name, ...kind, offsets: [Number(offsets[1]), Number(offsets[2])] });
      at = offsetsText.lastIndex;
    }
    if (text[at] === ",") continue;
    return text[at] === "}" && isSpace(text, at + 1) ? { entries, metadata } : undefined;
  }
}

const mostKinds = 2 ** 16;

function kindOf(written: string): Pick<PlainEntry, "dtype" | "shape"> | undefined {
  const [, dtype, sizes] = kindText.exec(written) ?? [];
  if (dtype === undefined || sizes === undefined) return undefined;
  return { dtype, shape: sizes === "" ? [] : sizes.split(",").map(Number) };
}

/** True for what may stand for another text, or is not JSON. */
function isEscaped(text: string): boolean {
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (code < 0x20 || code === 0x5c) return true;
  }
  return false;
}

/** True if nothing but the spaces that fill a header up follows. */
function isSpace(text: string, begin: number): boolean {
  for (let at = begin; at < text.length; at++) if (text[at] !== " ") return false;
  return true;
}

/** One past the object that begins there, if it holds no other; -1 if it does, or has an escape. */
function endOfFlat(text: string, begin: number): number {
  if (text[begin] !== "{") return -1;
  for (let at = begin + 1; at < text.length; at++) {
    const letter = text[at];
    if (letter === "}") return at + 1;
    if (letter === "{" || letter === "[") return -1;
    if (letter !== '"') continue;
    const end = text.indexOf('"', at + 1);
    if (end < 0 || text.slice(at, end).includes("\\")) return -1;
    at = end;
  }
  return -1;
}
