export * from "./cuda/index.ts";
export { BufferMemory, HostMemory } from "./host-memory.ts";
export {
  accumulatorOf,
  type Bytes,
  crc32c,
  describeElements,
  type Elements,
  finishReduce,
  type MemoryRange,
  move,
  type ReduceOptions,
  reduce,
} from "./kernels.ts";
export type { TypedArrayConstructor } from "./mapping.ts";
export type { Memory, MemoryKind, TensorMemory } from "./memory.ts";
export { NativeMemory } from "./native-memory.ts";
export { SharedMemory } from "./shared-memory.ts";
