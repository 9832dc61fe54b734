import { sha256 } from "@noble/hashes/sha2.js";
import {
  DeviceMesh,
  type DType,
  dtypeNumber,
  dtypes,
  isOpaque,
  type Layout,
  type PartialOp,
  type Placement,
  partialOps,
  type StridedShardReading,
} from "../../layout/index.ts";
import { Reader, Writer } from "./bytes.ts";
import { fail, NameLimits } from "./check.ts";
import { type Decisions, oldestPlanner, plannerVersion } from "./decisions.ts";
import { type NormalInput, type Pattern, readingNumber } from "./normalize.ts";
import { groupings, type Routing, reasons } from "./routing.ts";
import type { SideLayout } from "./sides.ts";
import type {
  HostLinkInput,
  PlanInput,
  SelectInput,
  Strategy,
  TensorInput,
  TensorSideInput,
} from "./types.ts";

/** `TBPL`, little-endian. */
const magic = 0x4c504254;
/** The layout of these bytes. A plan is written in the first one that can say it, so that its digest stays. */
export const formatVersion = 3;
/** The first that knows speeds of links between two hosts; the first that knows cuts by size and types that are only moved. */
const linksVersion = 2;
const sizesVersion = 3;
const checkBytes = 16;
/** The number of a shard with sizes; the other placements have those of `docs/plan-format.md`. */
const sizedShard = 4;

const strategies: readonly Strategy[] = ["auto", "direct", "striped"];
const hexDigits = "0123456789abcdef";
const readings: readonly (StridedShardReading | undefined)[] = [undefined, "split", "order"];

interface Encoded {
  readonly bytes: Uint8Array;
  /** SHA-256 of the bytes, as hexadecimal text. */
  readonly digest: string;
}

/** The canonical bytes of a plan (`docs/plan-format.md`) and their digest. */
export function encodePlan(input: NormalInput, { planner, routing }: Decisions): Encoded {
  const writer = new Writer(256 + input.names.length * 16);
  const format = formatOf(input);
  writer.u32(magic);
  writer.u16(format);
  writer.u16(planner);
  writeOptions(writer, input);
  writer.list(input.meshes, (mesh) => writeMesh(writer, mesh));
  writer.list(input.pairs, ({ name, source, target }) => {
    writer.text(name);
    writeLayout(writer, source);
    writeLayout(writer, target);
  });
  writer.list(input.kinds, (kind) => {
    writer.number(kind.pair);
    writer.u8(dtypeNumber(kind.dtype));
    writer.u8(dtypeNumber(kind.targetDtype));
    writer.list(kind.shape, (size) => writer.number(size));
    for (const side of [kind.source, kind.target]) {
      writer.u8(readingNumber(side.override));
      writer.number(side.selectDim + 1);
      if (side.selectDim < 0) continue;
      writer.number(side.selectOf);
      if (format >= sizesVersion) writer.list(side.selectSizes ?? [], (size) => writer.number(size));
    }
  });
  writeTensors(writer, input);
  for (const [index, pattern] of input.patterns.entries()) writePattern(writer, pattern, routing[index]!);

  const hash = sha256.create().update(writer.bytes());
  writer.raw(hash.clone().digest().subarray(0, checkBytes));
  const bytes = writer.bytes().slice();
  hash.update(bytes.subarray(-checkBytes));
  return { bytes, digest: toHex(hash.digest()) };
}

/** The lowest format version that can say an input. */
function formatOf({ topology, pairs, kinds }: NormalInput): number {
  const isSized = (placement: Placement) => placement.kind === "shard" && placement.sizes !== undefined;
  const isCutBySize = ({ placements }: SideLayout) => placements.some(isSized);
  if (pairs.some(({ source, target }) => isCutBySize(source) || isCutBySize(target))) return sizesVersion;
  const selectsBySize = ({ source, target }: NormalInput["kinds"][number]) =>
    source.selectSizes !== undefined || target.selectSizes !== undefined;
  if (kinds.some((kind) => selectsBySize(kind) || isOpaque(kind.dtype))) return sizesVersion;
  return topology !== undefined && topology.links.length > 0 ? linksVersion : 1;
}

function toHex(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += hexDigits[byte >> 4]! + hexDigits[byte & 15]!;
  return text;
}

function writeOptions(writer: Writer, input: NormalInput): void {
  writer.number(input.bucketBytes);
  writer.number(input.bucketsInFlight);
  writer.number(input.peersInFlight);
  writer.number(input.maxChunks);
  writer.u8(strategies.indexOf(input.strategy));
  writer.u8(input.topology === undefined ? 0 : 1);
  if (input.topology === undefined) return;
  writer.number(input.topology.ranksPerHost);
  writer.list(input.topology.hosts, (host) => writer.number(host));
  writer.number(input.topology.hostMBps);
  writer.number(input.topology.networkMBps);
  writer.number(input.topology.latencyUs);
  if (formatOf(input) < linksVersion) return;
  writer.list(input.topology.links, ({ hosts, MBps }) => {
    for (const value of [...hosts, MBps]) writer.number(value);
  });
}

/** Ranks as differences from one more than the last: mostly zeros. */
function writeMesh(writer: Writer, mesh: DeviceMesh): void {
  writer.list(mesh.shape, (size) => writer.number(size));
  let expected = 0;
  for (const rank of mesh.ranks) {
    writer.signed(rank - expected);
    expected = rank + 1;
  }
}

function writeLayout(writer: Writer, layout: SideLayout): void {
  writer.number(layout.meshNumber);
  writer.u8(readingNumber(layout.stridedShard));
  for (const placement of layout.placements) {
    switch (placement.kind) {
      case "replicate":
        writer.u8(0);
        break;
      case "shard":
        writer.u8(placement.sizes === undefined ? 1 : sizedShard);
        writer.signed(placement.dim);
        // One size for each coordinate of the mesh dimension, so their number is not written.
        for (const size of placement.sizes ?? []) writer.number(size);
        break;
      case "stridedShard":
        writer.u8(2);
        writer.signed(placement.dim);
        writer.number(placement.splitFactor);
        break;
      case "partial":
        writer.u8(3);
        writer.u8(partialOps.indexOf(placement.op));
        break;
    }
  }
}

/** Names have much in common with the one before: each is how much at either end, and what is between. */
function writeTensors(writer: Writer, input: NormalInput): void {
  writer.number(input.names.length);
  let last = "";
  for (let tensor = 0; tensor < input.names.length; tensor++) {
    const name = input.names[tensor]!;
    const head = commonHead(last, name);
    const tail = commonTail(last, name, head);
    writer.number(head);
    writer.number(tail);
    writer.text(name.slice(head, name.length - tail));
    last = name;
    const kind = input.kinds[input.tensorKinds[tensor]!]!;
    writer.number(input.tensorKinds[tensor]!);
    if (kind.source.selectDim >= 0) writer.number(input.sourceIndices[tensor]!);
    if (kind.target.selectDim >= 0) writer.number(input.targetIndices[tensor]!);
  }
}

function commonHead(a: string, b: string): number {
  const most = Math.min(a.length, b.length);
  let common = 0;
  // Up to the first unit of a surrogate pair: what is between must be text by itself.
  while (common < most && a.charCodeAt(common) === b.charCodeAt(common) && !isSurrogate(b, common)) common++;
  return common;
}

function commonTail(a: string, b: string, head: number): number {
  const most = Math.min(a.length, b.length) - head;
  let common = 0;
  while (common < most && a.charCodeAt(a.length - 1 - common) === b.charCodeAt(b.length - 1 - common)) {
    if (isSurrogate(b, b.length - 1 - common)) break;
    common++;
  }
  return common;
}

function isSurrogate(text: string, at: number): boolean {
  return (text.charCodeAt(at) & 0xf800) === 0xd800;
}

function writePattern(writer: Writer, pattern: Pattern, routing: Routing): void {
  writer.number(pattern.first);
  writer.number(pattern.count);
  writer.u8(strategies.indexOf(routing.strategy));
  writer.u8(reasons.indexOf(routing.reason));
  writer.u8(groupings.indexOf(routing.groups));
}

/** True if bytes begin as those of a plan do, of whatever version, so that a file says by itself what it is. */
export function isSavedPlan(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && new Reader(bytes).u32() === magic;
}

/** The version of the planner that made canonical bytes which `decodeInput` takes. */
export function plannerOf(bytes: Uint8Array): number {
  const reader = new Reader(bytes);
  reader.u32();
  reader.u16();
  return reader.u16();
}

/** The input in canonical bytes. `TB_PLAN_FORMAT` for damage, another format, or another planner. */
export function decodeInput(bytes: Uint8Array): PlanInput {
  if (!(bytes instanceof Uint8Array)) throw new TypeError("a plan can be loaded only from a Uint8Array");
  const reader = new Reader(bytes.subarray(0, Math.max(0, bytes.length - checkBytes)));
  if (reader.u32() !== magic) throw fail("TB_PLAN_FORMAT", "these bytes are not a saved plan", {});
  const format = reader.u16();
  const planner = reader.u16();
  if (format < 1 || format > formatVersion || planner < oldestPlanner || planner > plannerVersion) {
    throw fail(
      "TB_PLAN_FORMAT",
      `a plan of format ${format} and planner ${planner}; this is format up to ${formatVersion}, planner ${oldestPlanner} to ${plannerVersion}`,
      { found: { format, planner }, supported: { format: formatVersion, planner: plannerVersion } },
    );
  }
  const check = sha256(bytes.subarray(0, -checkBytes));
  if (!bytes.subarray(-checkBytes).every((byte, index) => byte === check[index])) {
    throw fail("TB_PLAN_FORMAT", "the plan is damaged: its checksum is wrong", { bytes: bytes.length });
  }
  const options = readOptions(reader, format);
  const meshes = reader.list(() => readMesh(reader));
  const pairs = reader.list(() => {
    const name = reader.text();
    return { name, source: readLayout(reader, meshes), target: readLayout(reader, meshes) };
  });
  const kinds = reader.list(() => readKind(reader, pairs, format));
  return {
    pairs: Object.fromEntries(pairs.map(({ name, source, target }) => [name, { source, target }])),
    tensors: readTensors(reader, kinds),
    ...options,
  };
}

function readOptions(reader: Reader, format: number): Omit<PlanInput, "pairs" | "tensors"> {
  const options = {
    bucketBytes: reader.number(),
    bucketsInFlight: reader.number(),
    peersInFlight: reader.number(),
    maxChunks: reader.number(),
    strategy: reader.entry(strategies),
  };
  if (reader.u8() === 0) return options;
  const ranksPerHost = reader.number();
  const hosts = reader.list(() => reader.number());
  const [hostMBps, networkMBps, latencyUs] = [reader.number(), reader.number(), reader.number()];
  const where = ranksPerHost === 0 ? { hosts } : { ranksPerHost };
  const links = format < linksVersion ? undefined : reader.list(() => readLink(reader));
  const speeds = { hostMBps, networkMBps, latencyUs, ...(links === undefined ? {} : { links }) };
  return { ...options, topology: { ...where, ...speeds } };
}

function readLink(reader: Reader): HostLinkInput {
  return { hosts: [reader.number(), reader.number()], MBps: reader.number() };
}

function readMesh(reader: Reader): DeviceMesh {
  const shape = reader.list(() => reader.number());
  const size = shape.reduce((product, extent) => product * extent, 1);
  reader.expect(size);
  let expected = 0;
  const ranks = Array.from({ length: size }, () => {
    const rank = expected + reader.signed();
    expected = rank + 1;
    return rank;
  });
  return new DeviceMesh(shape, { ranks });
}

function readLayout(reader: Reader, meshes: readonly DeviceMesh[]): Layout {
  const mesh = reader.entry(meshes, reader.number());
  const reading = reader.entry(readings);
  const placements = mesh.shape.map((size) => readPlacement(reader, size));
  return { mesh, placements, ...(reading === undefined ? {} : { stridedShard: reading }) };
}

function readPlacement(reader: Reader, coordinates: number): Placement {
  const kind = reader.u8();
  switch (kind) {
    case 0:
      return { kind: "replicate" };
    case 1:
      return { kind: "shard", dim: reader.signed() };
    case 2:
      return { kind: "stridedShard", dim: reader.signed(), splitFactor: reader.number() };
    case 3:
      return { kind: "partial", op: reader.entry<PartialOp>(partialOps) };
    case sizedShard: {
      const dim = reader.signed();
      reader.expect(coordinates);
      return { kind: "shard", dim, sizes: Array.from({ length: coordinates }, () => reader.number()) };
    }
    default:
      throw fail("TB_PLAN_FORMAT", `the plan is damaged: a placement has the unknown kind ${kind}`, { kind });
  }
}

interface ReadKind {
  readonly fields: Omit<TensorInput, "name">;
  readonly source: ReadSide;
  readonly target: ReadSide;
}
interface ReadSide {
  readonly stridedShard: StridedShardReading | undefined;
  readonly select: Omit<SelectInput, "index"> | undefined;
}

function readKind(reader: Reader, pairs: readonly { readonly name: string }[], format: number): ReadKind {
  const pair = reader.entry(pairs, reader.number()).name;
  const dtype = reader.entry<DType>(dtypes);
  const targetDtype = reader.entry<DType>(dtypes);
  const shape = reader.list(() => reader.number());
  const fields = { pair, shape, dtype, ...(targetDtype === dtype ? {} : { targetDtype }) };
  return { fields, source: readSide(reader, format), target: readSide(reader, format) };
}

function readSide(reader: Reader, format: number): ReadSide {
  const stridedShard = reader.entry(readings);
  const dim = reader.number() - 1;
  if (dim < 0) return { stridedShard, select: undefined };
  const of = reader.number();
  const sizes = format < sizesVersion ? [] : reader.list(() => reader.number());
  return { stridedShard, select: { dim, of, ...(sizes.length > 0 && { sizes }) } };
}

function readTensors(reader: Reader, kinds: readonly ReadKind[]): TensorInput[] {
  let last = "";
  const limits = new NameLimits();
  return reader.list(() => {
    const head = reader.number();
    const tail = reader.number();
    if (head + tail > last.length) {
      throw fail(
        "TB_PLAN_FORMAT",
        "the plan is damaged: a name shares more characters with the name before it than that has",
        {
          head,
          tail,
        },
      );
    }
    const between = reader.text();
    limits.take(head + between.length + tail, "TB_PLAN_FORMAT");
    const name = last.slice(0, head) + between + (tail === 0 ? "" : last.slice(-tail));
    last = name;
    const kind = reader.entry(kinds, reader.number());
    const source = sideInput(kind.source, reader);
    const target = sideInput(kind.target, reader);
    return {
      name,
      ...kind.fields,
      ...(source === undefined ? {} : { source }),
      ...(target === undefined ? {} : { target }),
    };
  });
}

function sideInput(side: ReadSide, reader: Reader): TensorSideInput | undefined {
  if (side.select === undefined && side.stridedShard === undefined) return undefined;
  return {
    ...(side.select === undefined ? {} : { select: { ...side.select, index: reader.number() } }),
    ...(side.stridedShard === undefined ? {} : { stridedShard: side.stridedShard }),
  };
}
