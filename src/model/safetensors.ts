export type { Box } from "./box.ts";
export type { SafetensorsEntry } from "./safetensors-header.ts";
export { openSafetensors, resolveCheckpoint } from "./safetensors-open.ts";
export {
  type BoxTarget,
  type ReadOptions,
  SafetensorsCheckpoint,
  type SafetensorsTensor,
} from "./safetensors-read.ts";
export {
  createSafetensors,
  publish,
  removeUnfinished,
  type SafetensorsWriteOptions,
  SafetensorsWriter,
} from "./safetensors-write.ts";
