export type { Box } from "./box.ts";
export { openSafetensors, resolveCheckpoint } from "./safetensors-open.ts";
export { SafetensorsCheckpoint } from "./safetensors-read.ts";
export {
  createSafetensors,
  publish,
  removeUnfinished,
  SafetensorsWriter,
} from "./safetensors-write.ts";
