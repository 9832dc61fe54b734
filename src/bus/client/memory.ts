/**
 * What a client's tensors are to its agent: regions, and where each tensor lies in them. A typed array on a SharedTensor's
 * memory is found to be one; any other is plain memory, for which the agent must live in this process.
 */
import { markAsUntransferable } from "node:worker_threads";
import { TensorBusError } from "../../errors.ts";
import { type DType, dtypeNumber, itemSize, refusePacked } from "../../layout/index.ts";
import { contiguousStrides } from "../../layout/strides.ts";
import { DeviceMemory } from "../../memory/cuda/index.ts";
import { BufferMemory } from "../../memory/host-memory.ts";
import type { RegionMessage } from "../queue/commands.ts";
import type { TensorRecord } from "../queue/tensor-table.ts";
import { hostRegions } from "../tensor/host-regions.ts";
import { type SharedStorage, storageOf } from "../tensor/shared-arena.ts";
import { SharedTensor } from "../tensor/shared-tensor.ts";
import { elementCount, elementSpan } from "../tensor/strided-shape.ts";
import type { ClientLayout, LayoutList } from "./layout.ts";

/** Memory of a CUDA device, as its owner exports it. Without events the caller has synchronised. */
export interface CudaMemory {
  readonly kind: "cuda";
  /** The 64 bytes of `cudaIpcGetMemHandle`. */
  readonly handle: Uint8Array;
  /** The device's UUID, as `GPU-…` text. */
  readonly device: string;
  /** Bytes of the allocation. */
  readonly bytes: number;
  /**
   * The 64 bytes of `cudaIpcGetEventHandle`, of an event of that device which its owner records before each round: the round
   * begins once the GPU has come to it, so that nobody has to synchronise.
   */
  readonly ready?: Uint8Array;
  /** The same of an event that the agent records when a round no longer touches the memory, however it ended. */
  readonly free?: Uint8Array;
}

/** Memory of a CUDA device in the agent's own process, where CUDA opens no handle. The caller has synchronised. */
interface OwnCudaMemory {
  readonly kind: "cuda";
  /** Its address, as `cudaMalloc` gives it. */
  readonly address: bigint;
  readonly device: string;
  /** Bytes from there. */
  readonly bytes: number;
}

export type TensorData = SharedTensor | ArrayBufferView | CudaMemory | OwnCudaMemory;

/** A tensor with what its memory does not say by itself. */
export interface TensorDescription {
  readonly data: TensorData;
  /** Default: that of the SharedTensor or of the typed array. An array of 8 or 16 bits may hold floats' bits. */
  readonly dtype?: DType;
  /** Default: that of the SharedTensor; all elements of a typed array. */
  readonly shape?: readonly number[];
  /** In elements; default: packed and row-major, or those of the SharedTensor. */
  readonly strides?: readonly number[];
  /** Bytes to the first element; default 0. Not for a SharedTensor, which has its own. */
  readonly byteOffset?: number;
  /** The same on both sides; default: its index in the batch. */
  readonly name?: string;
  /** Needed only if the local shapes leave it open. */
  readonly globalShape?: readonly number[];
  /** How it lies over the ranks of its side; default: the layout of its pair. */
  readonly layout?: ClientLayout;
}

export type ClientTensor = SharedTensor | ArrayBufferView | TensorDescription;

/** The type of a typed array's elements, if the array's own type says it. */
const dtypeOfArray: Readonly<Record<string, DType>> = {
  Float64Array: "float64",
  Float32Array: "float32",
  Float16Array: "float16",
  BigInt64Array: "int64",
  Int32Array: "int32",
  Int16Array: "int16",
  Int8Array: "int8",
  Uint8Array: "uint8",
  Uint8ClampedArray: "uint8",
  Buffer: "uint8",
};

/** Collects the regions of one RegisterTensors command, each once. */
export class RegionList {
  readonly messages: RegionMessage[] = [];
  readonly #allowsPlain: boolean;
  readonly #indices = new Map<unknown, number>();
  readonly #storages: SharedStorage[] = [];
  readonly #plain: PlainRegion[] = [];

  /** `allowsPlain`: the agent lives in this process. */
  constructor(allowsPlain: boolean) {
    this.#allowsPlain = allowsPlain;
  }

  addShared(storage: SharedStorage): number {
    return this.#once(storage, () => {
      this.#storages.push(storage);
      return {
        kind: "shared",
        fd: storage.memory.descriptor!,
        ...storage.identity(),
        bytes: storage.memory.bytes,
      };
    });
  }

  /** A plain ArrayBuffer. `TB_UNSUPPORTED` for an agent of another process. */
  addPlain(buffer: ArrayBufferLike): number {
    if (!this.#allowsPlain) {
      throw new TensorBusError(
        "TB_UNSUPPORTED",
        "only this process can see a plain ArrayBuffer, and the agent runs in another one: use SharedTensor.allocate",
      );
    }
    return this.#once(buffer, () => {
      const region = lendPlain(buffer);
      this.#plain.push(region);
      return { kind: "host", key: region.key, bytes: region.memory.bytes };
    });
  }

  addCuda(memory: CudaMemory): number {
    const { device, bytes } = memory;
    const handle = Uint8Array.from(memory.handle);
    const events = {
      ...(memory.ready === undefined ? {} : { ready: Uint8Array.from(memory.ready) }),
      ...(memory.free === undefined ? {} : { free: Uint8Array.from(memory.free) }),
    };
    const parts = [handle, events.ready ?? [], events.free ?? []];
    const identity = `${device} ${parts.map((part) => Buffer.from(part).toString("base64")).join()}`;
    return this.#once(identity, () => ({ kind: "cuda", handle, device, bytes: BigInt(bytes), ...events }));
  }

  /** `TB_UNSUPPORTED` for an agent of another process. */
  addOwnCuda({ address, device, bytes }: OwnCudaMemory): number {
    if (!this.#allowsPlain) {
      throw new TensorBusError(
        "TB_UNSUPPORTED",
        "an address means nothing outside of this process, and the agent runs in another one: give the IPC handle",
      );
    }
    const place = `${device} ${address} ${bytes}`;
    return this.#once(place, () => {
      const region = lend(ownRegions, place, () => DeviceMemory.over(device, address, bytes));
      this.#plain.push(region);
      return { kind: "host", key: region.key, bytes: region.memory.bytes };
    });
  }

  /** What keeps these regions for as long as the agent knows them. */
  hold(): RegionHold {
    return new RegionHold(this.#storages, this.#plain);
  }

  #once(identity: unknown, describe: () => RegionMessage): number {
    let index = this.#indices.get(identity);
    if (index === undefined) {
      index = this.messages.push(describe()) - 1;
      this.#indices.set(identity, index);
    }
    return index;
  }
}

/** Keeps memory that was handed to an agent. */
export class RegionHold {
  #storages: readonly SharedStorage[];
  #plain: readonly PlainRegion[];

  constructor(storages: readonly SharedStorage[], plain: readonly PlainRegion[]) {
    this.#storages = storages;
    this.#plain = plain;
    // All of them are there, or none is retained: asking for an address is refused if it was closed.
    for (const { memory } of storages) void memory.address;
    for (const { memory } of storages) memory.retain();
  }

  /** `TB_REGION` if plain memory was detached since, before a round meets it. */
  check(): void {
    // The address of detached memory is refused.
    for (const { memory } of this.#plain) void memory.address;
  }

  /** A second call does nothing. */
  release(): void {
    for (const { memory } of this.#storages) memory.release();
    for (const region of this.#plain) returnPlain(region);
    // A handler that is kept does not keep the memory.
    this.#storages = [];
    this.#plain = [];
  }
}

interface PlainRegion {
  readonly memory: BufferMemory | DeviceMemory;
  readonly key: bigint;
  /** Called when nobody uses it any more. */
  readonly forget: () => void;
  users: number;
}

/** Memory of several batches is one region: transports take each memory once. */
const plainRegions = new WeakMap<ArrayBufferLike, PlainRegion>();
/** By device, address and bytes. */
const ownRegions = new Map<string, PlainRegion>();

interface Regions<K> {
  get(key: K): PlainRegion | undefined;
  set(key: K, region: PlainRegion): unknown;
  delete(key: K): unknown;
}

function lend<K>(regions: Regions<K>, key: K, make: () => PlainRegion["memory"]): PlainRegion {
  let region = regions.get(key);
  if (region === undefined) {
    const memory = make();
    region = { memory, key: hostRegions.add(memory), users: 0, forget: () => regions.delete(key) };
    regions.set(key, region);
  }
  region.users++;
  return region;
}

function lendPlain(buffer: ArrayBufferLike): PlainRegion {
  return lend(plainRegions, buffer, () => {
    const memory = new BufferMemory(buffer);
    pin(buffer);
    return memory;
  });
}

function returnPlain(region: PlainRegion): void {
  region.users--;
  if (region.users > 0) return;
  hostRegions.remove(region.key);
  region.forget();
}

/** What native code knows the address of stays where it is, from now on: detaching is refused, or copies. */
function pin(buffer: ArrayBufferLike): void {
  if (!(buffer instanceof ArrayBuffer)) return;
  markAsUntransferable(buffer);
  for (const name of ["transfer", "transferToFixedLength"]) {
    Object.defineProperty(buffer, name, {
      value: () => {
        throw new TypeError("this ArrayBuffer is the memory of a registered tensor and cannot be detached");
      },
    });
  }
}

/**
 * The record of one tensor, its region added to the list. `TypeError` for what is no tensor, `TB_REGION` for elements outside
 * of their memory, `TB_STRIDES` for strides that none can have.
 */
export function describeTensor(
  tensor: ClientTensor,
  pair: string,
  regions: RegionList,
  index: number,
  layouts: LayoutList,
): TensorRecord {
  const description = isDescription(tensor) ? tensor : { data: tensor };
  const { data } = description;
  const place = data instanceof SharedTensor ? placeOfShared(data, description) : placeOf(data, description);
  const { dtype, shape, strides, offset, bytes } = place;
  const size = itemSize(dtype);
  const wrong = (code: "TB_REGION" | "TB_STRIDES", what: string) =>
    new TensorBusError(code, `tensor ${description.name ?? index}: ${what}`, {
      details: { tensor: description.name ?? index, dtype, shape, strides, offset, bytes },
    });
  if (strides.length !== shape.length || strides.some((step) => !Number.isSafeInteger(step) || step < 0)) {
    throw wrong("TB_STRIDES", `strides ${strides.join(", ")} do not fit a tensor of ${shape.join(" x ")}`);
  }
  const end = offset + elementSpan(shape, strides) * size;
  if (end > place.start + bytes) {
    throw wrong(
      "TB_REGION",
      `its elements end at byte ${end - place.start}, and its memory has ${bytes} bytes`,
    );
  }
  const isEmpty = elementCount(shape) === 0;
  // Nothing is read or written there, so that any region will do.
  const region = isEmpty ? regions.addShared(emptyTensor().storage) : place.region(regions);
  return {
    pair,
    dtype,
    shape: shape.map(BigInt),
    strides: strides.map(BigInt),
    region,
    offset: isEmpty ? 0n : BigInt(offset),
    ...(description.name === undefined ? {} : { name: description.name }),
    ...(description.globalShape === undefined ? {} : { globalShape: description.globalShape.map(BigInt) }),
    ...(description.layout === undefined ? {} : { layout: layouts.add(description.layout) }),
  };
}

interface TensorPlace {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  /** Bytes of the region where the memory that was given begins, where the tensor begins, and how many were given. */
  readonly start: number;
  readonly offset: number;
  readonly bytes: number;
  readonly region: (regions: RegionList) => number;
}

function placeOfShared(tensor: SharedTensor, description: TensorDescription): TensorPlace {
  if (
    description.byteOffset !== undefined ||
    description.shape !== undefined ||
    description.strides !== undefined ||
    (description.dtype !== undefined && description.dtype !== tensor.dtype)
  ) {
    throw new TypeError(
      "a SharedTensor already has its type, shape, strides and offset: use its views to change them",
    );
  }
  const { dtype, shape, strides, storage, storageOffset } = tensor;
  return {
    dtype,
    shape,
    strides,
    start: 0,
    offset: storageOffset,
    bytes: Number(storage.memory.bytes),
    region: (regions) => regions.addShared(storage),
  };
}

function placeOf(
  data: ArrayBufferView | CudaMemory | OwnCudaMemory,
  description: TensorDescription,
): TensorPlace {
  const dtype = description.dtype ?? dtypeOfArray[(data as object)?.constructor?.name ?? ""];
  if (dtype === undefined) {
    throw new TypeError(
      `the element type of a ${(data as object)?.constructor?.name} must be given as dtype`,
    );
  }
  dtypeNumber(dtype);
  refusePacked(dtype);
  const size = itemSize(dtype);
  const memory = ArrayBuffer.isView(data) ? memoryOfView(data) : memoryOfCuda(data);
  const byteOffset = description.byteOffset ?? 0;
  const offset = memory.start + byteOffset;
  if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || offset % size !== 0) {
    throw new TypeError(`a tensor of ${dtype} cannot begin at byte ${offset} of its memory`);
  }
  if (description.shape === undefined && !ArrayBuffer.isView(data)) {
    throw new TypeError("the shape of a tensor in CUDA memory must be given");
  }
  const shape = description.shape ?? [Math.floor((memory.bytes - byteOffset) / size)];
  if (shape.some((extent) => !Number.isSafeInteger(extent) || extent < 0)) {
    throw new TypeError(`a tensor cannot have the shape ${shape.join(" x ")}`);
  }
  return { ...memory, dtype, shape, strides: description.strides ?? contiguousStrides(shape), offset };
}

type MemoryPlace = Pick<TensorPlace, "start" | "bytes" | "region">;

function memoryOfView(view: ArrayBufferView): MemoryPlace {
  const buffer = view.buffer as ArrayBufferLike & {
    resizable?: boolean;
    growable?: boolean;
    detached?: boolean;
  };
  if (buffer.resizable || buffer.growable) {
    throw new TypeError("a resizable ArrayBuffer cannot be the memory of a tensor: it may move or shrink");
  }
  const shared = storageOf(buffer);
  if (view.byteLength === 0 && isDetached(buffer)) {
    throw new TensorBusError("TB_REGION", "the ArrayBuffer behind a tensor was detached");
  }
  const { byteLength: bytes } = view;
  if (shared !== undefined) {
    const start = shared.offset + view.byteOffset;
    return { start, bytes, region: (regions) => regions.addShared(shared.storage) };
  }
  return { start: view.byteOffset, bytes, region: (regions) => regions.addPlain(buffer) };
}

/** A detached buffer says so since Node.js 21; before, no view can be made on one. */
function isDetached(buffer: ArrayBufferLike & { detached?: boolean }): boolean {
  if (buffer.detached !== undefined) return buffer.detached;
  try {
    new Uint8Array(buffer as ArrayBuffer);
    return false;
  } catch {
    return true;
  }
}

function memoryOfCuda(data: CudaMemory | OwnCudaMemory): MemoryPlace {
  const isHandle = (value: Uint8Array | undefined) => value instanceof Uint8Array && value.length === 64;
  const { bytes } = data ?? {};
  if (data?.kind !== "cuda" || typeof data.device !== "string" || !Number.isSafeInteger(bytes) || bytes < 0) {
    throw new TypeError("a tensor must be a SharedTensor, a typed array, or memory of a CUDA device");
  }
  if ("address" in data) {
    if (typeof data.address !== "bigint" || "handle" in data) {
      throw new TypeError("memory of a CUDA device needs its address as a bigint, or its handle");
    }
    return { start: 0, bytes, region: (regions) => regions.addOwnCuda(data) };
  }
  for (const name of ["handle", "ready", "free"] as const) {
    if (name !== "handle" && data[name] === undefined) continue;
    if (!isHandle(data[name])) throw new TypeError(`the ${name} of CUDA memory must be a handle of 64 bytes`);
  }
  return { start: 0, bytes, region: (regions) => regions.addCuda(data) };
}

function isDescription(tensor: ClientTensor): tensor is TensorDescription {
  if (tensor instanceof SharedTensor || ArrayBuffer.isView(tensor)) return false;
  if (typeof tensor === "object" && tensor !== null && "data" in tensor) return true;
  throw new TypeError("a tensor must be a SharedTensor, a typed array, or { data, … } with one of these");
}

let empty: SharedTensor | undefined;

/** Memory that stands for that of tensors without elements. */
function emptyTensor(): SharedTensor {
  empty ??= SharedTensor.allocate([0], "uint8");
  return empty;
}
