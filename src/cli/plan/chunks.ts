import { type Chunk, chunkToJSON } from "../../plan/index.ts";
import type { Output } from "../ui/output.ts";

/** Lines are written together: a write for each would cost more than making them. */
const blockCharacters = 64 * 1024;

/** Streams chunks as NDJSON, as fast as they are read. Offsets, lengths and bytes are decimal text: they are 64-bit. */
export async function writeChunks(output: Output, chunks: Iterable<Chunk>): Promise<void> {
  let block = "";
  for (const chunk of chunks) {
    block += `${JSON.stringify(chunkToJSON(chunk))}\n`;
    if (block.length < blockCharacters) continue;
    await output.write(block);
    block = "";
  }
  if (block !== "") await output.write(block);
}
