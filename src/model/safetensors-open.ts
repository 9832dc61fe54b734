import { type FileHandle, open, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { TensorBusError } from "../errors.ts";
import { fileError, readTextFile } from "./files.ts";
import { duplicateKey, parseJson } from "./json-keys.ts";
import {
  damaged,
  headerLength,
  parseHeader,
  prefixBytes,
  type SafetensorsHeader,
} from "./safetensors-header.ts";
import { SafetensorsCheckpoint, type SafetensorsTensor } from "./safetensors-read.ts";

const singleName = "model.safetensors";
const indexSuffix = ".index.json";
const maxIndexBytes = 256 * 2 ** 20;

interface OpenFile extends SafetensorsHeader {
  readonly path: string;
  readonly handle: FileHandle;
}

/**
 * Opens a checkpoint: a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds
 * `model.safetensors.index.json` or `model.safetensors`. Every header is checked. `TB_FILE` if a file cannot be
 * read, `TB_SAFETENSORS` if one is damaged or an index and its files disagree, `TB_DTYPE` for an element type that
 * is unknown here.
 */
export async function openSafetensors(path: string): Promise<SafetensorsCheckpoint> {
  const file = await resolveCheckpoint(path);
  return file.endsWith(indexSuffix) ? openIndex(file) : openSingle(file);
}

/** What one file says of itself; nothing is kept open. Errors are those of `openSafetensors`. */
export async function readFileHeader(path: string): Promise<SafetensorsHeader> {
  const { handle, entries, metadata } = await openFile(path);
  await handle.close();
  return { entries, metadata };
}

/** The file that stands for a checkpoint: the path itself, or the index or the single file of a folder. `TB_FILE`. */
export async function resolveCheckpoint(path: string): Promise<string> {
  if (!(await isKind(path, "isDirectory"))) return path;
  for (const name of [singleName + indexSuffix, singleName]) {
    const file = join(path, name);
    const found = await isKind(file, "isFile").catch(() => false);
    if (found) return file;
  }
  throw new TensorBusError("TB_FILE", `${path} holds neither ${singleName}${indexSuffix} nor ${singleName}`, {
    details: { path },
  });
}

async function isKind(path: string, kind: "isDirectory" | "isFile"): Promise<boolean> {
  try {
    return (await stat(path))[kind]();
  } catch (error) {
    throw fileError(error, "open", path);
  }
}

async function openSingle(path: string): Promise<SafetensorsCheckpoint> {
  const file = await openFile(path);
  const tensors = new Map(file.entries.map((entry) => [entry.name, { ...entry, file: path }]));
  return new SafetensorsCheckpoint(new Map([[path, file.handle]]), tensors, file.metadata);
}

/** The index is the list of tensors: one that is missing in its file is an error, one that only a file has is not in the model. */
async function openIndex(path: string): Promise<SafetensorsCheckpoint> {
  const weightMap = parseIndex(await readTextFile(path, maxIndexBytes), path);
  const files = new Map<string, OpenFile>();
  try {
    for (const name of new Set(weightMap.values()))
      files.set(name, await openFile(join(dirname(path), name)));
    return joinFiles(path, weightMap, files);
  } catch (error) {
    await Promise.all([...files.values()].map(({ handle }) => handle.close()));
    throw error;
  }
}

function joinFiles(
  path: string,
  weightMap: ReadonlyMap<string, string>,
  files: ReadonlyMap<string, OpenFile>,
): SafetensorsCheckpoint {
  const found = new Map<string, Map<string, SafetensorsTensor>>();
  for (const [name, { path: file, entries }] of files) {
    found.set(name, new Map(entries.map((entry) => [entry.name, { ...entry, file }])));
  }
  const tensors = new Map<string, SafetensorsTensor>();
  for (const [name, fileName] of weightMap) {
    const tensor = found.get(fileName)?.get(name);
    if (tensor === undefined) {
      throw damaged(
        path,
        `it says that tensor ${JSON.stringify(name)} is in ${fileName}, which does not have it`,
        {
          tensor: name,
          holder: fileName,
        },
      );
    }
    tensors.set(name, tensor);
  }
  const opened = [...files.values()];
  const metadata = Object.assign({}, ...opened.map((file) => file.metadata).reverse()) as Record<
    string,
    string
  >;
  return new SafetensorsCheckpoint(
    new Map(opened.map((file) => [file.path, file.handle])),
    tensors,
    metadata,
    opened.reduce((sum, { entries }) => sum + entries.length, -tensors.size),
  );
}

/** The `weight_map` of an index: from tensor to file name. */
function parseIndex(text: string, path: string): Map<string, string> {
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (cause) {
    throw damaged(path, "it is not JSON", {}, cause);
  }
  const key = duplicateKey(text);
  if (key !== undefined) throw damaged(path, `it has ${JSON.stringify(key)} twice`, { key });
  const weightMap = (value as { weight_map?: unknown } | null)?.weight_map;
  if (typeof weightMap !== "object" || weightMap === null || Array.isArray(weightMap)) {
    throw damaged(path, "its weight_map is missing");
  }
  const entries = Object.entries(weightMap);
  for (const [name, file] of entries) {
    if (!isFileName(file)) {
      throw damaged(
        path,
        `tensor ${JSON.stringify(name)} is said to be in ${JSON.stringify(file)}, which is not a file in its folder`,
        {
          tensor: name,
          holder: file,
        },
      );
    }
  }
  return new Map(entries as [string, string][]);
}

/** A path below the index's own folder: an index that comes from elsewhere must not reach other files. */
function isFileName(value: unknown): value is string {
  if (typeof value !== "string" || /[\\\0]/.test(value)) return false;
  return value.split("/").every((part) => part !== "" && part !== "." && part !== "..");
}

async function openFile(path: string): Promise<OpenFile> {
  let handle: FileHandle;
  try {
    handle = await open(path, "r");
  } catch (error) {
    throw fileError(error, "open", path);
  }
  try {
    return { path, handle, ...(await readHeader(handle, path)) };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function readHeader(handle: FileHandle, path: string): Promise<SafetensorsHeader> {
  const stats = await handle.stat().catch((error: unknown) => {
    throw fileError(error, "read", path);
  });
  if (!stats.isFile()) {
    throw new TensorBusError("TB_FILE", `cannot read ${path}: it is not a regular file`, {
      details: { path },
    });
  }
  const start = await readStart(handle, path, 0, lookedAtBytes);
  refuseOthers(start, path);
  const length = headerLength(start.subarray(0, prefixBytes), stats.size, path);
  const header = await readStart(handle, path, prefixBytes, length);
  if (header.length < length) throw damaged(path, "it became shorter while it was read");
  return parseHeader(header, stats.size, path);
}

const lookedAtBytes = 256;

/** Refuses what stands in place of a checkpoint if its download went wrong. */
function refuseOthers(start: Uint8Array, path: string): void {
  const text = new TextDecoder("latin1").decode(start).trimStart().toLowerCase();
  if (text.startsWith("version https://git-lfs")) {
    const size = /^size (\d+)$/m.exec(text)?.[1];
    throw damaged(
      path,
      `it is a git-LFS pointer${size === undefined ? "" : ` to ${size} bytes`}, not the file: run \`git lfs pull\` in its repository`,
      { pointer: true },
    );
  }
  if (/^<(!doctype|html|\?xml)/.test(text)) {
    throw damaged(path, "it is an HTML page, perhaps an error of the server: download the file again", {});
  }
}

/** Up to `length` bytes: less only at the end of the file. */
async function readStart(
  handle: FileHandle,
  path: string,
  position: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await handle
      .read(bytes, done, length - done, position + done)
      .catch((error: unknown) => {
        throw fileError(error, "read", path);
      });
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes.subarray(0, done);
}
