/** Chunks of a home that are noted, for tensors that have the same (`replay.ts`). */
import { alloc, grow } from "./arena";

/** A note: u32 stage, kind, from, to; i64 bytes. */
export const NOTE_BYTES: usize = 24;
export let notes: usize = 0;
export let noteCount: u32 = 0;
let noteCapacity: u32 = 0;

export function startNotes(): void {
  noteCapacity = 64;
  notes = alloc(<usize>noteCapacity * NOTE_BYTES);
}

export function forgetNotes(): void {
  noteCount = 0;
}

export function note(stage: u32, kind: u32, from: u32, to: u32, bytes: i64): void {
  if (noteCount == noteCapacity) {
    notes = grow(notes, <usize>noteCapacity * NOTE_BYTES);
    noteCapacity <<= 1;
  }
  const at = notes + <usize>noteCount * NOTE_BYTES;
  noteCount++;
  store<u32>(at, stage);
  store<u32>(at, kind, 4);
  store<u32>(at, from, 8);
  store<u32>(at, to, 12);
  store<i64>(at, bytes, 16);
}
