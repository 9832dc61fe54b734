/**
 * What the files of a result hold, box by box: lines of JSON, compressed, a line for each file and behind it one for each of its
 * parameters. So neither who writes it nor who reads it needs all of it at once.
 */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { Readable } from "node:stream";
import { createGunzip, createGzip } from "node:zlib";
import { TensorBusError } from "../errors.ts";
import { type DType, isDType } from "../layout/index.ts";
import { readBytes } from "../model/files.ts";
import { isOfResult } from "./names.ts";
import {
  HeldParameter,
  ParameterTexts,
  type Pattern,
  SharedLists,
  type TargetBox,
  type TargetFile,
  type TargetParameter,
} from "./target.ts";

/** A model of 70,000 tensors on 64 ranks takes some 40 MiB. */
const maxFileBytes = 512 * 2 ** 20;
const maxLineBytes = 64 * 2 ** 20;
const maxTextBytes = 2 ** 34;
const maxDimensions = 64;

/** The bytes of the layout of these files. */
export async function layoutBytes(files: readonly TargetFile[]): Promise<Buffer> {
  const gzip = createGzip({ level: 3 });
  const chunks: Buffer[] = [];
  gzip.on("data", (chunk: Buffer) => chunks.push(chunk));
  const ended = once(gzip, "end");
  for (const text of textsOf(files)) if (!gzip.write(text)) await once(gzip, "drain");
  gzip.end();
  await ended;
  return Buffer.concat(chunks);
}

/** Texts of many lines each, so that compressing them is not waited for line by line. */
function* textsOf(files: readonly TargetFile[]): Generator<string> {
  const texts = new ParameterTexts();
  let lines: string[] = [];
  for (const { name, parameters } of files) {
    lines.push(JSON.stringify([name]));
    for (const parameter of parameters) {
      lines.push(`[${texts.parameter(parameter)}]`);
      if (lines.length < linesTogether) continue;
      yield `${lines.join("\n")}\n`;
      lines = [];
    }
  }
  yield lines.map((line) => `${line}\n`).join("");
}

const linesTogether = 1024;

/**
 * What a layout's file says, file by file: what all of them hold takes much memory. `TB_FILE` if it is missing, damaged, or not the one
 * of that digest.
 */
export async function* readLayoutFile(
  path: string,
  digest: string | undefined,
): AsyncGenerator<Pick<TargetFile, "name" | "parameters">> {
  const refuse = (what: string, cause?: unknown) =>
    new TensorBusError("TB_FILE", `${path} ${what}`, { details: { path }, cause });
  const bytes = await readBytes(path, maxFileBytes);
  if (createHash("sha256").update(bytes).digest("hex") !== digest) throw refuse("is not of this result");
  const lists = new SharedLists();
  const kinds = new LineKinds();
  let file: { readonly name: string; readonly parameters: TargetParameter[] } | undefined;
  for await (const line of linesOf(bytes, refuse)) {
    const alike = file && kinds.parameterOf(line);
    if (alike !== undefined) {
      file!.parameters.push(alike);
      continue;
    }
    const value = parse(line);
    if (!Array.isArray(value)) throw refuse("is not the layout of a result");
    const [name] = value;
    if (value.length === 1 && typeof name === "string") {
      if (!isOfResult(name)) throw refuse(`names ${JSON.stringify(name)}, which is not a file of a result`);
      if (file !== undefined) yield file;
      file = { name, parameters: [] };
      continue;
    }
    const parameter = parameterOf(value, lists);
    if (parameter === undefined || file === undefined) throw refuse("is not the layout of a result");
    const { name: key, shape, boxes } = parameter;
    if (!boxes.every((box) => isWithin(shape, box)))
      throw refuse(`has a box that is not within ${key} of ${file.name}`);
    file.parameters.push(kinds.add(line, parameter));
  }
  if (file !== undefined) yield file;
}

/**
 * The lines of parameters that differ in nothing but the name of the tensor that they are of: a line is read once for all of them. A
 * name is looked for in quotes, so it must be one that the text between two strings cannot be.
 */
class LineKinds {
  readonly #kinds = new Map<string, { readonly dtype: DType; readonly pattern: Pattern }>();

  /** A parameter like one that was added; `undefined` if there was none. */
  parameterOf(line: string): TargetParameter | undefined {
    const [name, rest] = withoutName(line) ?? [];
    const kind = rest === undefined ? undefined : this.#kinds.get(rest);
    return kind === undefined ? undefined : new HeldParameter(name!, kind.dtype, kind.pattern);
  }

  /** Keeps what a line says of a parameter, all of whose boxes are within it, and gives it back: with places that others share, if they can. */
  add(line: string, parameter: TargetParameter): TargetParameter {
    const { name, shape, dtype, boxes } = parameter;
    if (this.#kinds.size >= mostLineKinds || !boxes.every(({ tensor }) => tensor === name)) return parameter;
    const [, rest] = withoutName(line) ?? [];
    if (rest === undefined) return parameter;
    const places = boxes.map(({ start, length, at, axes }) => ({ start, length, at, axes }));
    const pattern = { shape, places };
    this.#kinds.set(rest, { dtype, pattern });
    return new HeldParameter(name, dtype, pattern);
  }
}

const mostLineKinds = 2 ** 12;

/** The name that a line begins with, and the line without it, wherever it stands in quotes. */
function withoutName(line: string): [name: string, rest: string] | undefined {
  const end = line.indexOf('"', 2);
  if (!line.startsWith('["') || end < 0 || line.includes("\\") || line.includes(noName)) return undefined;
  const name = line.slice(2, end);
  // One that is called like an element type would take the type for its name.
  return plainName.test(name) && !isDType(name)
    ? [name, line.replaceAll(line.slice(1, end + 1), noName)]
    : undefined;
}

/** No string of JSON has it, other than escaped. */
const noName = "\0";
const plainName = /^[\w.:/-]+$/;

async function* linesOf(
  bytes: Buffer,
  refuse: (what: string, cause?: unknown) => TensorBusError,
): AsyncGenerator<string> {
  const gunzip = Readable.from([bytes]).pipe(createGunzip());
  let rest = "";
  let total = 0;
  const chunks = gunzip.setEncoding("utf8")[Symbol.asyncIterator]();
  for (;;) {
    let next: IteratorResult<string>;
    try {
      next = await chunks.next();
    } catch (cause) {
      throw refuse("is damaged", cause);
    }
    if (next.done === true) break;
    total += next.value.length;
    const lines = (rest + next.value).split("\n");
    rest = lines.pop()!;
    if (rest.length > maxLineBytes || total > maxTextBytes) throw refuse("is too large for a layout");
    yield* lines;
  }
  if (rest !== "") throw refuse("ends inside of a line");
}

function parameterOf(value: readonly unknown[], lists: SharedLists): TargetParameter | undefined {
  const [name, shape, dtype, boxes] = value;
  if (value.length !== 4 || typeof name !== "string" || !isCounts(shape, 0)) return undefined;
  if (typeof dtype !== "string" || !isDType(dtype) || !Array.isArray(boxes)) return undefined;
  const found = boxes.map((box) => boxOf(box, lists));
  if (!found.every((box) => box !== undefined)) return undefined;
  return { name, shape: lists.share(shape), dtype: dtype as DType, boxes: found };
}

function boxOf(value: unknown, lists: SharedLists): TargetBox | undefined {
  if (!Array.isArray(value) || value.length !== 5) return undefined;
  const [tensor, start, length, at, axes] = value as readonly unknown[];
  if (typeof tensor !== "string" || !isCounts(axes, -1)) return undefined;
  if (!isCounts(start, 0) || !isCounts(length, 0) || !isCounts(at, 0)) return undefined;
  const [first, extents, place, along] = [start, length, at, axes].map((list) => lists.share(list));
  return { tensor, start: first!, length: extents!, at: place!, axes: along! };
}

function isCounts(value: unknown, least: number): value is number[] {
  return (
    Array.isArray(value) &&
    value.length <= maxDimensions &&
    value.every((entry) => Number.isSafeInteger(entry) && entry >= least)
  );
}

/** True if a box lies in a parameter of that shape, each axis of its tensor along one of the parameter or one element long. */
function isWithin(shape: readonly number[], { start, length, at, axes }: TargetBox): boolean {
  const used = axes.filter((axis) => axis >= 0);
  return (
    start.length === length.length &&
    at.length === shape.length &&
    axes.length === shape.length &&
    new Set(used).size === used.length &&
    used.every((axis) => axis < length.length) &&
    length.every((extent, dim) => extent === 1 || used.includes(dim)) &&
    axes.every((axis, place) => at[place]! + (axis < 0 ? 1 : length[axis]!) <= shape[place]!)
  );
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
