export type { Box } from "./box.ts";
export { openSafetensors, readFileHeader, resolveCheckpoint } from "./safetensors-open.ts";
export { SafetensorsCheckpoint, type SafetensorsTensor } from "./safetensors-read.ts";
export {
  createSafetensors,
  publish,
  removeUnfinished,
  SafetensorsWriter,
} from "./safetensors-write.ts";
