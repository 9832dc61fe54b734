import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { duplicateKey, fractionalNumber, parseJson } from "./json-keys.ts";
import { readPlainHeader } from "./safetensors-plain.ts";
import { elementCount, type ModelTensor } from "./tensor.ts";

/** A tensor in a safetensors file: its elements are row-major and contiguous. */
export interface SafetensorsEntry extends ModelTensor {
  /** The position of its first byte in the file. */
  readonly position: number;
  readonly bytes: number;
}

export interface SafetensorsHeader {
  /** In the order in which the header names them. */
  readonly entries: readonly SafetensorsEntry[];
  readonly metadata: Readonly<Record<string, string>>;
}

/** Bytes before the header: its length, a little-endian unsigned 64-bit integer. */
export const prefixBytes = 8;
/** The longest header that the reference implementation reads. */
const maxHeaderBytes = 100_000_000;
const metadataKey = "__metadata__";

const namesInFile: Readonly<Record<DType, string>> = {
  float64: "F64",
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  float8_e4m3fn: "F8_E4M3",
  float8_e5m2: "F8_E5M2",
  int64: "I64",
  int32: "I32",
  int16: "I16",
  int8: "I8",
  uint8: "U8",
  bool: "BOOL",
  uint16: "U16",
  uint32: "U32",
  uint64: "U64",
  complex64: "C64",
  float8_e8m0fnu: "F8_E8M0",
  float8_e4m3fnuz: "F8_E4M3FNUZ",
  float8_e5m2fnuz: "F8_E5M2FNUZ",
  float4_e2m1fn: "F4",
  float6_e2m3fn: "F6_E2M3",
  float6_e3m2fn: "F6_E3M2",
};
const dtypesInFile = new Map<unknown, DType>(
  Object.entries(namesInFile).map(([dtype, name]) => [name, dtype as DType]),
);

/** The length of the header from the first 8 bytes of a file. `TB_SAFETENSORS` if the file cannot hold it. */
export function headerLength(prefix: Uint8Array, fileBytes: number, file: string): number {
  if (prefix.length < prefixBytes) {
    throw damaged(
      file,
      `it has ${fileBytes} bytes, and the length of the header alone takes ${prefixBytes}`,
      {
        fileBytes,
      },
    );
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (length > BigInt(maxHeaderBytes)) {
    throw damaged(file, `it claims a header of ${length} bytes; at most ${maxHeaderBytes} are allowed`, {
      headerBytes: length,
      maxHeaderBytes,
    });
  }
  if (BigInt(prefixBytes) + length > BigInt(fileBytes)) {
    throw damaged(file, `it claims a header of ${length} bytes and has only ${fileBytes} in all`, {
      headerBytes: length,
      fileBytes,
    });
  }
  return Number(length);
}

/**
 * Reads and checks a header: valid UTF-8 and JSON, no name twice, known element types (`TB_DTYPE`), sizes that match
 * shape and type, and data that cover the rest of the file once, without holes or overlap, as the reference
 * implementation demands. `TB_SAFETENSORS` names the file, the tensor and the values.
 */
export function parseHeader(header: Uint8Array, fileBytes: number, file: string): SafetensorsHeader {
  const dataBegin = prefixBytes + header.length;
  const text = textOf(header, file);
  const { entries, metadata } = parsePlain(text, dataBegin, file) ?? parseAny(text, dataBegin, file);
  checkCoverage(entries, dataBegin, fileBytes, file);
  return { entries, metadata };
}

function textOf(header: Uint8Array, file: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
  } catch (cause) {
    throw damaged(file, "its header is not UTF-8", {}, cause);
  }
}

function parsePlain(text: string, dataBegin: number, file: string): SafetensorsHeader | undefined {
  const plain = readPlainHeader(text);
  if (plain === undefined) return undefined;
  const entries = plain.entries.map(({ name, dtype, shape, offsets }) =>
    parseEntry(name, { dtype, shape, data_offsets: offsets }, dataBegin, file),
  );
  const { [metadataKey]: metadata } =
    plain.metadata === undefined ? {} : parseObject(`{"${metadataKey}":${plain.metadata}}`, file);
  return { entries, metadata: parseMetadata(metadata, file) };
}

function parseAny(text: string, dataBegin: number, file: string): SafetensorsHeader {
  const fields = parseObject(text, file);
  const entries: SafetensorsEntry[] = [];
  for (const [name, value] of Object.entries(fields))
    if (name !== metadataKey) entries.push(parseEntry(name, value, dataBegin, file));
  return { entries, metadata: parseMetadata(fields[metadataKey], file) };
}

function parseObject(text: string, file: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (cause) {
    throw damaged(file, "its header is not JSON", {}, cause);
  }
  if (!isObject(value)) throw damaged(file, "its header is not a JSON object");
  const key = duplicateKey(text);
  if (key !== undefined) throw damaged(file, `its header has ${JSON.stringify(key)} twice`, { key });
  const number = fractionalNumber(text);
  if (number !== undefined)
    throw damaged(file, `its header has the number ${number}, which is not an integer`, { number });
  return value;
}

function parseMetadata(value: unknown, file: string): Record<string, string> {
  if (value === undefined || value === null) return {};
  if (!isObject(value) || !Object.values(value).every((entry) => typeof entry === "string")) {
    throw damaged(file, `its ${metadataKey} is not a map from text to text`);
  }
  return value as Record<string, string>;
}

function parseEntry(name: string, value: unknown, dataBegin: number, file: string): SafetensorsEntry {
  // Named only if something is wrong: there may be a hundred thousand.
  const at = () => `tensor ${JSON.stringify(name)}`;
  if (!isObject(value))
    throw damaged(file, `the entry of ${at()} must be an object, not ${JSON.stringify(value)}`, {
      tensor: name,
    });
  const { dtype: typeName, shape, data_offsets: offsets } = value;
  const dtype = dtypesInFile.get(typeName);
  if (dtype === undefined) {
    const known = Object.values(namesInFile);
    throw new TensorBusError(
      "TB_DTYPE",
      `${file}: ${at()} has the element type ${JSON.stringify(typeName)}; known are ${known.join(" ")}`,
      { details: { file, tensor: name, dtype: typeName, known } },
    );
  }
  if (!isCounts(shape)) {
    throw damaged(file, `${at()} has the shape ${JSON.stringify(shape)}, which is not a list of sizes`, {
      tensor: name,
      shape,
    });
  }
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]!) {
    throw damaged(
      file,
      `${at()} has the data_offsets ${JSON.stringify(offsets)}, which are not a begin and an end`,
      { tensor: name, offsets },
    );
  }
  const [begin, end] = offsets as [number, number];
  const count = elementCount(shape);
  const expected = count === undefined ? Number.NaN : count * itemSize(dtype);
  if (expected !== end - begin) {
    throw damaged(
      file,
      `${at()}: ${shape.join(" x ") || "one element"} of ${typeName} takes ${expected <= Number.MAX_SAFE_INTEGER ? expected : "too many"} bytes, ` +
        `its data_offsets [${begin}, ${end}] hold ${end - begin}`,
      { tensor: name, shape, dtype, begin, end },
    );
  }
  return { name, shape, dtype, position: dataBegin + begin, bytes: end - begin };
}

/** Every byte after the header belongs to exactly one tensor. */
function checkCoverage(
  entries: readonly SafetensorsEntry[],
  dataBegin: number,
  fileBytes: number,
  file: string,
): void {
  const compare = (a: SafetensorsEntry, b: SafetensorsEntry) =>
    a.position - b.position || a.bytes - b.bytes || (a.name < b.name ? -1 : 1);
  const isAscending = entries.every((entry, index) => index === 0 || compare(entries[index - 1]!, entry) < 0);
  const byPosition = isAscending ? entries : [...entries].sort(compare);
  let next = dataBegin;
  for (const { name, position, bytes } of byPosition) {
    if (position !== next) {
      const [begin, end] = [position - dataBegin, position - dataBegin + bytes];
      throw damaged(
        file,
        `tensor ${JSON.stringify(name)} at data_offsets [${begin}, ${end}] ` +
          (position < next
            ? `overlaps the data before it, which end at ${next - dataBegin}`
            : `leaves a hole: the data before it end at ${next - dataBegin}`),
        { tensor: name, begin, end, previousEnd: next - dataBegin },
      );
    }
    next = position + bytes;
  }
  if (next !== fileBytes) {
    throw damaged(
      file,
      next > fileBytes
        ? `it is truncated: its tensors end at byte ${next}, the file has ${fileBytes}`
        : `it has ${fileBytes - next} bytes after its last tensor`,
      { expectedBytes: next, fileBytes },
    );
  }
}

/** A header of a new file, and where it puts the tensors. */
interface HeaderLayout {
  /** The bytes before the data (the length and the header, a multiple of 8). */
  readonly head: Uint8Array;
  /** The byte of each tensor's first element, in the order in which they were given. */
  readonly positions: Float64Array;
  /** The bytes of each tensor. */
  readonly sizes: Float64Array;
  readonly fileBytes: number;
}

/**
 * Lays tensors out in a new file: larger element types first, so that each tensor is aligned to its own, otherwise in
 * the given order. `TB_SAFETENSORS` for a name that stands twice, or a header or file that would be too large.
 */
export function layOutHeader(
  tensors: readonly ModelTensor[],
  metadata: Readonly<Record<string, string>>,
  file: string,
): HeaderLayout {
  const order = orderOf(tensors);
  const known = new KnownFields(file);
  const positions = new Float64Array(tensors.length);
  const sizes = new Float64Array(tensors.length);
  const names = new Set<string>();
  let end = 0;
  // Written out: there may be a hundred thousand of them, in each of many files.
  const head = new HeadBytes();
  head.add(Object.keys(metadata).length > 0 ? `"${metadataKey}":${JSON.stringify(metadata)}` : "");
  for (const index of order) {
    const { name, shape, dtype } = tensors[index]!;
    if (name === metadataKey || names.has(name)) {
      const what = `a tensor cannot be named ${JSON.stringify(name)}${names.has(name) ? " twice" : ""}`;
      throw damaged(file, what, { tensor: name });
    }
    names.add(name);
    const { bytes, text } = known.of(name, shape, dtype);
    positions[index] = end;
    sizes[index] = bytes;
    if (!Number.isSafeInteger(end + bytes)) {
      const what = `tensor ${JSON.stringify(name)} of shape [${shape}] is too large`;
      throw damaged(file, what, { tensor: name, shape });
    }
    head.add(`${JSON.stringify(name)}:{${text}"data_offsets":[${end},${end + bytes}]}`);
    end += bytes;
  }
  const bytes = head.finish(file);
  for (let index = 0; index < positions.length; index++) positions[index]! += bytes.length;
  return { head: bytes, positions, sizes, fileBytes: bytes.length + end };
}

/** Larger element types first. */
function orderOf(tensors: readonly ModelTensor[]): Iterable<number> {
  const sizes = tensors.map(({ dtype }) => itemSize(dtype));
  if (sizes.every((size) => size === sizes[0])) return sizes.keys();
  return [...sizes.keys()].sort((a, b) => sizes[b]! - sizes[a]!);
}

/** What tensors of one type and shape have in common in a header, found once if they share the list of it. */
class KnownFields {
  readonly #file: string;
  readonly #known = new Map<readonly number[], { dtype: DType; bytes: number; text: string }>();

  constructor(file: string) {
    this.#file = file;
  }

  of(name: string, shape: readonly number[], dtype: DType): { bytes: number; text: string } {
    const known = this.#known.get(shape);
    if (known?.dtype === dtype) return known;
    const bytes = isCounts(shape) ? (elementCount(shape) ?? Number.NaN) * itemSize(dtype) : Number.NaN;
    if (bytes % 1 !== 0 && Number.isFinite(bytes)) {
      const what = `tensor ${JSON.stringify(name)} of shape [${shape}] ends inside of a byte of ${dtype}`;
      throw damaged(this.#file, what, { tensor: name, shape, dtype });
    }
    const found = { dtype, bytes, text: `"dtype":"${namesInFile[dtype]}","shape":[${shape.join()}],` };
    this.#known.set(shape, found);
    return found;
  }
}

/** The bytes of a header while it is written: one text of all of it would be made of as many pieces as there are tensors. */
class HeadBytes {
  #bytes = new Uint8Array(2 ** 16);
  #length = prefixBytes;
  #text = "";
  #separator = "{";

  add(field: string): void {
    if (field === "") return;
    this.#text += this.#separator + field;
    this.#separator = ",";
    if (this.#text.length >= encodedTogether) this.#encode();
  }

  #encode(): void {
    const encoded = new TextEncoder().encode(this.#text);
    this.#text = "";
    const length = this.#length + encoded.length;
    if (length > this.#bytes.length) {
      const longer = new Uint8Array(Math.max(length, 2 * this.#bytes.length));
      longer.set(this.#bytes);
      this.#bytes = longer;
    }
    this.#bytes.set(encoded, this.#length);
    this.#length = length;
  }

  /** All of it, filled up to a multiple of 8. `TB_SAFETENSORS` if that is too long. */
  finish(file: string): Uint8Array {
    this.#text += this.#separator === "{" ? "{}" : "}";
    this.#text += " ".repeat(7);
    this.#encode();
    const headerBytes = Math.floor((this.#length - prefixBytes) / 8) * 8;
    if (headerBytes > maxHeaderBytes) {
      const what = `its header would have ${headerBytes} bytes; at most ${maxHeaderBytes} are allowed`;
      throw damaged(file, what, { headerBytes });
    }
    const head = this.#bytes.subarray(0, prefixBytes + headerBytes);
    new DataView(head.buffer).setBigUint64(0, BigInt(headerBytes), true);
    return head;
  }
}

const encodedTogether = 2 ** 14;

/** `TB_SAFETENSORS`, naming the file. */
export function damaged(
  file: string,
  what: string,
  details: Readonly<Record<string, unknown>> = {},
  cause?: unknown,
): TensorBusError {
  return new TensorBusError("TB_SAFETENSORS", `${file}: ${what}`, { details: { file, ...details }, cause });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((entry) => Number.isSafeInteger(entry) && entry >= 0);
}
