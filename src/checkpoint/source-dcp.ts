/**
 * Torch's distributed checkpoints: `.metadata`, a pickle that says which chunk of which tensor lies where, and `.distcp` files of
 * items, each a ZIP archive with a small pickle of its own and the bytes. Both pickles are read as data; see `pickle.ts`.
 */
import { closeSync, fstatSync, openSync } from "node:fs";
import { join } from "node:path";
import { type DType, isDType, itemSize } from "../layout/index.ts";
import { fileError, readBytes } from "../model/files.ts";
import { PickledGlobal, PickledObject, PickledReference, type PickledValue, readPickle } from "./pickle.ts";
import { type CheckpointSource, distinctBoxes, type SourceTensor, type StoredBox } from "./source.ts";
import { Archive, damagedCheckpoint as refuse } from "./zip.ts";

export const dcpMetadataName = ".metadata";
const maxMetadataBytes = 2 ** 30;
const maxItemPickleBytes = 2 ** 20;

const package_ = "torch.distributed.checkpoint";
const types = {
  metadata: `${package_}.metadata.Metadata`,
  tensor: `${package_}.metadata.TensorStorageMetadata`,
  bytes: `${package_}.metadata.BytesStorageMetadata`,
  properties: `${package_}.metadata.TensorProperties`,
  chunk: `${package_}.metadata.ChunkStorageMetadata`,
  index: `${package_}.metadata.MetadataIndex`,
  storageMeta: `${package_}.metadata.StorageMeta`,
  memoryFormat: `${package_}.metadata._MEM_FORMAT_ENCODING`,
  info: `${package_}.filesystem._StorageInfo`,
  size: "torch.Size",
} as const;

/** Element types by torch's names; most are ours. */
const dtypeNames = [
  ...["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"],
  ...["float8_e4m3fnuz", "float8_e5m2fnuz", "int64", "int32", "int16", "int8", "uint8", "bool"],
  ...["uint16", "uint32", "uint64", "complex64"],
];

const storages: Readonly<Record<string, DType>> = {
  "torch.DoubleStorage": "float64",
  "torch.FloatStorage": "float32",
  "torch.HalfStorage": "float16",
  "torch.BFloat16Storage": "bfloat16",
  "torch.LongStorage": "int64",
  "torch.IntStorage": "int32",
  "torch.ShortStorage": "int16",
  "torch.CharStorage": "int8",
  "torch.ByteStorage": "uint8",
  "torch.BoolStorage": "bool",
  "torch.ComplexFloatStorage": "complex64",
};
const untyped = "torch.storage.UntypedStorage";

const metadataGlobals = new Set<string>([
  ...Object.values(types),
  ...dtypeNames.map((name) => `torch.${name}`),
  "torch.serialization._get_layout",
  "pathlib.PosixPath",
  "pathlib.WindowsPath",
  "collections.OrderedDict",
]);

const rebuild = {
  typed: "torch._utils._rebuild_tensor_v2",
  untyped: "torch._utils._rebuild_tensor_v3",
} as const;
const itemGlobals = new Set<string>([
  ...Object.values(rebuild),
  ...Object.keys(storages),
  untyped,
  ...dtypeNames.map((name) => `torch.${name}`),
  "collections.OrderedDict",
]);

/**
 * The tensors of a distributed checkpoint whose names begin with `prefix`, without it. Items that are no tensors are passed
 * over. `TB_CHECKPOINT` for what is damaged, refused, or says two things of one tensor.
 */
export async function dcpSource(folder: string, prefix = ""): Promise<CheckpointSource> {
  const path = join(folder, dcpMetadataName);
  const value = readPickle(await readBytes(path, maxMetadataBytes), metadataGlobals, path);
  const metadata = objectOf(value, types.metadata, path);
  const infos = storageInfos(mapOf(field(metadata, "storage_data", path), path), path);
  const files = new ItemFiles(folder);
  const tensors: SourceTensor[] = [];
  let skipped = 0;
  try {
    for (const [key, entry] of mapOf(field(metadata, "state_dict_metadata", path), path)) {
      const name = textOf(key, path);
      if (!name.startsWith(prefix)) continue;
      if (entry instanceof PickledObject && entry.global === types.bytes) skipped++;
      else tensors.push(readTensor(name, prefix, objectOf(entry, types.tensor, path), infos, files, path));
    }
  } finally {
    files.close();
  }
  if (tensors.length === 0) {
    const what =
      prefix === "" ? "it holds no tensors" : `none of its tensors begins with ${JSON.stringify(prefix)}`;
    throw refuse(path, what, { prefix });
  }
  return { path: folder, files: files.paths, tensors, metadata: {}, unlisted: skipped };
}

interface StorageInfo {
  readonly file: string;
  readonly offset: number;
  readonly length: number;
}

/** By tensor and the chunk's place. */
function storageInfos(map: Map<PickledValue, PickledValue>, path: string): Map<string, StorageInfo> {
  const infos = new Map<string, StorageInfo>();
  for (const [key, value] of map) {
    const index = objectOf(key, types.index, path);
    const info = objectOf(value, types.info, path);
    const name = textOf(field(index, "fqn", path), path);
    const offset = optional(index, "offset");
    const at = offset === undefined || offset === null ? [] : sizeOf(offset, path);
    const file = textOf(field(info, "relative_path", path), path);
    if (file.split("/").some((part) => part === "" || part === "." || part === "..") || file.includes("\0")) {
      throw refuse(
        path,
        `a chunk of ${name} is said to be in ${JSON.stringify(file)}, which is not a file of its folder`,
      );
    }
    const transforms = optional(info, "transform_descriptors");
    if (Array.isArray(transforms) && transforms.length > 0) {
      throw refuse(path, `a chunk of ${name} is compressed or otherwise transformed`);
    }
    infos.set(placeKey(name, at), {
      file,
      offset: countOf(field(info, "offset", path), path),
      length: countOf(field(info, "length", path), path),
    });
  }
  return infos;
}

function placeKey(name: string, at: readonly number[]): string {
  return `${name}\0${at.join()}`;
}

function readTensor(
  name: string,
  prefix: string,
  entry: PickledObject,
  infos: ReadonlyMap<string, StorageInfo>,
  files: ItemFiles,
  path: string,
): SourceTensor {
  const shape = sizeOf(field(entry, "size", path), path);
  const dtype = dtypeOf(propertiesOf(field(entry, "properties", path), path), path);
  const chunks = listOf(field(entry, "chunks", path), path).map((chunk) => {
    const object = objectOf(chunk, types.chunk, path);
    const start = sizeOf(field(object, "offsets", path), path);
    const length = sizeOf(field(object, "sizes", path), path);
    return { start, length };
  });
  const stored = chunks.flatMap(({ start, length }): StoredBox[] => {
    const fits = start.length === shape.length && start.every((at, dim) => at + length[dim]! <= shape[dim]!);
    if (!fits)
      throw refuse(
        path,
        `a chunk of ${name} at [${start}] of [${length}] is not in its tensor of [${shape}]`,
      );
    if (length.includes(0)) return [];
    const info =
      infos.get(placeKey(name, start)) ?? (shape.length === 0 ? infos.get(placeKey(name, [])) : undefined);
    if (info === undefined)
      throw refuse(path, `it does not say where the chunk of ${name} at [${start}] lies`);
    return [files.box(info, { name, dtype, start, length })];
  });
  const boxes = distinctBoxes(stored, (one, other) =>
    refuse(path, `the chunks of ${name} at [${other.start}] and [${one.start}] overlap`),
  );
  const product = (extents: readonly number[]) => extents.reduce((count, extent) => count * extent, 1);
  const held = boxes.reduce((sum, { length }) => sum + product(length), 0);
  if (held !== product(shape))
    throw refuse(path, `the chunks of ${name} have ${held} elements, and it has ${product(shape)}`);
  return { name: name.slice(prefix.length), shape, dtype, boxes };
}

/** The state of TensorProperties: its element type comes first. */
function propertiesOf(value: PickledValue, path: string): PickledValue {
  const { state } = objectOf(value, types.properties, path);
  if (Array.isArray(state)) return state[0] ?? null;
  return state instanceof Map ? (state.get("dtype") ?? null) : null;
}

function dtypeOf(value: PickledValue, path: string): DType {
  const name = value instanceof PickledGlobal ? value.name.replace(/^torch\./, "") : undefined;
  if (name !== undefined && isDType(name)) return name;
  throw refuse(path, `an element type is ${name ?? "missing"}`);
}

interface ItemTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly start: readonly number[];
  readonly length: readonly number[];
}

/** The files of items, each opened once. */
class ItemFiles {
  readonly #folder: string;
  readonly #numbers = new Map<string, number>();
  readonly #fds: number[] = [];

  constructor(folder: string) {
    this.#folder = folder;
  }

  get paths(): string[] {
    return [...this.#numbers.keys()].map((name) => join(this.#folder, name));
  }

  close(): void {
    for (const fd of this.#fds) closeSync(fd);
  }

  /** Says where the elements of an item lie. */
  box({ file, offset, length }: StorageInfo, { name, dtype, start, length: extents }: ItemTensor): StoredBox {
    const path = join(this.#folder, file);
    const number = this.#open(file, path);
    const fd = this.#fds[number]!;
    if (offset + length > fstatSync(fd).size) {
      throw refuse(path, `the item of ${name} ends at byte ${offset + length}, beyond the file`);
    }
    const archive = new Archive(fd, path, offset, length);
    if (archive.has("byteorder") && Buffer.from(archive.read("byteorder", 16)).toString() !== "little") {
      throw refuse(path, `the item of ${name} is not little-endian`);
    }
    const stored = storedTensor(
      readPickle(archive.read("data.pkl", maxItemPickleBytes), itemGlobals, path),
      path,
    );
    if (stored.dtype !== dtype || String(stored.shape) !== String(extents)) {
      throw refuse(
        path,
        `the item of ${name} is ${stored.dtype} of [${stored.shape}], and the metadata say ${dtype} of [${extents}]`,
      );
    }
    const data = archive.place(`data/${stored.key}`);
    const item = itemSize(dtype);
    const end = stored.strides.reduce(
      (sum, stride, dim) => sum + (extents[dim]! - 1) * stride,
      stored.offset + 1,
    );
    if (end * item > data.bytes) {
      throw refuse(path, `the elements of ${name} end at byte ${end * item} of ${data.bytes}`);
    }
    const position = data.position + stored.offset * item;
    return { file: number, position, start, length: extents, strides: stored.strides };
  }

  #open(file: string, path: string): number {
    const known = this.#numbers.get(file);
    if (known !== undefined) return known;
    try {
      this.#fds.push(openSync(path, "r"));
    } catch (error) {
      throw fileError(error, "open", path);
    }
    this.#numbers.set(file, this.#fds.length - 1);
    return this.#fds.length - 1;
  }
}

interface StoredTensor {
  readonly key: string;
  readonly dtype: DType;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

/** What `_rebuild_tensor_v2` or `_v3` is called with. */
function storedTensor(value: PickledValue, path: string): StoredTensor {
  const isTyped = value instanceof PickledObject && value.global === rebuild.typed;
  if (!(value instanceof PickledObject) || (!isTyped && value.global !== rebuild.untyped)) {
    throw refuse(path, "an item is not a tensor");
  }
  const [reference, offset, shape, strides, , , dtype] = value.args;
  const id = reference instanceof PickledReference ? listOf(reference.id, path) : [];
  const [kind, storage, key] = id;
  if (
    kind !== "storage" ||
    !(storage instanceof PickledGlobal) ||
    typeof key !== "string" ||
    !/^\w+$/.test(key)
  ) {
    throw refuse(path, "a tensor names no storage");
  }
  const found = storage.name === untyped ? dtypeOf(dtype ?? null, path) : storages[storage.name];
  if (found === undefined) throw refuse(path, `a tensor lies in ${storage.name}`);
  const stored = {
    key,
    dtype: found,
    offset: countOf(offset ?? null, path),
    shape: countsOf(shape ?? null, path),
    strides: countsOf(strides ?? null, path),
  };
  if (stored.shape.length !== stored.strides.length)
    throw refuse(path, "shape and strides of a tensor do not fit");
  return stored;
}

function objectOf(value: PickledValue, global: string, path: string): PickledObject {
  if (value instanceof PickledObject && value.global === global) return value;
  throw refuse(path, `something else was found instead of ${global}`);
}

function optional({ state }: PickledObject, name: string): PickledValue | undefined {
  return state instanceof Map ? state.get(name) : undefined;
}

function field(object: PickledObject, name: string, path: string): PickledValue {
  const value = optional(object, name);
  if (value !== undefined) return value;
  throw refuse(path, `a ${object.global} has no ${name}`);
}

function mapOf(value: PickledValue, path: string): Map<PickledValue, PickledValue> {
  if (value instanceof Map) return value;
  throw refuse(path, "something else was found instead of a dictionary");
}

function listOf(value: PickledValue, path: string): readonly PickledValue[] {
  if (Array.isArray(value)) return value;
  throw refuse(path, "something else was found instead of a list");
}

function textOf(value: PickledValue, path: string): string {
  if (typeof value === "string") return value;
  throw refuse(path, "something else was found instead of a text");
}

function countOf(value: PickledValue, path: string): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw refuse(path, `${typeof value === "number" ? value : "something else"} was found instead of a count`);
}

/** `torch.Size([…])`. */
function sizeOf(value: PickledValue, path: string): number[] {
  const list = value instanceof PickledObject && value.global === types.size ? (value.args[0] ?? []) : value;
  return countsOf(list, path);
}

/** More than torch has of dimensions. */
const maxDimensions = 64;

function countsOf(value: PickledValue, path: string): number[] {
  const list = listOf(value, path);
  // One long list, named by many chunks, would keep the reader busy for hours.
  if (list.length > maxDimensions)
    throw refuse(path, `a tensor has ${list.length} dimensions, more than ${maxDimensions}`);
  return list.map((extent) => countOf(extent, path));
}
