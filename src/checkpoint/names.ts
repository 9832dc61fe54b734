/** What the files of results are called. */

export const manifestName = "tensorbus-manifest.json";
/** What every file holds, box by box: written beside the manifest, so that a result can be read as a checkpoint again. */
export const layoutName = "tensorbus-layout.jsonl.gz";

/** True if a file of some result is called so. */
export function isOfResult(name: string): boolean {
  return (
    name === manifestName ||
    name === layoutName ||
    /^(rank-\d+|model-rank-\d+-part-\d+|model-\d{5}-of-\d{5}|model)\.safetensors$/.test(name) ||
    name === "model.safetensors.index.json"
  );
}
