/**
 * Replay: tensors of a class that stand in the same place of all rotations have the same chunks at a home. The
 * tally walks the first of them and notes its chunks; of the others it only puts as many bytes into buckets.
 */
import { alloc, allocZero } from "./arena";
import { classPeriods } from "./channels";
import { findTensors, foundTensor } from "./homes";
import {
  classCount,
  classFirst,
  classTensor,
  DIRECT,
  patternAt,
  tensorClass,
  tensorOrdinal,
  tensorPattern,
} from "./model";
import { forgetNotes, NOTE_BYTES, noteCount, notes, startNotes } from "./notes";
import { toNotes, toTally } from "./sink";
import { addSums, fill } from "./tally";
import { enter, source } from "./tensor";
import { NONE, setU32, u32At } from "./words";
import { walkHomeOf } from "./walk";

/** For each class its period, and its first place; `NONE` if every tensor is walked. */
let periods: usize = 0;
let firstPlaces: usize = 0;
let placeCount: u32 = 0;
/** For each place the notes of its first tensor, up to those of the next, and how many tensors have them. */
let firstNotes: usize = 0;
let endNotes: usize = 0;
let uses: usize = 0;
/** The places that the home at hand has. */
let used: usize = 0;
let usedCount: u32 = 0;

export function startReplay(): void {
  periods = classPeriods();
  firstPlaces = alloc((<usize>classCount) << 2);
  placeCount = 0;
  for (let index: u32 = 0; index < classCount; index++) {
    enter(classTensor(classFirst(index)));
    const period = u32At(periods, index);
    const tensors = classFirst(index + 1) - classFirst(index);
    // Pieces of a partial source are numbered through all tensors.
    const isReplayed = period != 0 && period < tensors && source.contributions == 1;
    setU32(firstPlaces, index, isReplayed ? placeCount : NONE);
    if (isReplayed) placeCount += period;
  }
  firstNotes = alloc((<usize>placeCount) << 2);
  endNotes = alloc((<usize>placeCount) << 2);
  uses = allocZero((<usize>placeCount) << 2);
  used = alloc((<usize>placeCount) << 2);
  usedCount = 0;
  startNotes();
}

/** Takes all chunks of a home, in the order of the tensors. */
export function tallyHome(home: u32): void {
  for (let place: u32 = 0; place < usedCount; place++) setU32(uses, u32At(used, place), 0);
  usedCount = 0;
  forgetNotes();
  toTally();
  const tensors = findTensors(home);
  for (let at: u32 = 0; at < tensors; at++) {
    const tensor = foundTensor(at);
    const group = tensorClass(tensor);
    let place = u32At(firstPlaces, group);
    if (place == NONE) {
      walkHomeOf(home, tensor);
      continue;
    }
    const period = u32At(periods, group);
    if (period > 1) place += tensorOrdinal(tensor) % period;
    if (u32At(uses, place) == 0) {
      noteHome(home, tensor, place);
      setU32(used, usedCount++, place);
    }
    setU32(uses, place, u32At(uses, place) + 1);
    replay(place, patternAt(tensorPattern(tensor)).striping != DIRECT);
  }
  for (let place: u32 = 0; place < usedCount; place++) sumUp(u32At(used, place));
}

function noteHome(home: u32, tensor: u32, place: u32): void {
  setU32(firstNotes, place, noteCount);
  toNotes();
  walkHomeOf(home, tensor);
  toTally();
  setU32(endNotes, place, noteCount);
}

function replay(place: u32, isStriped: bool): void {
  const end = notes + <usize>u32At(endNotes, place) * NOTE_BYTES;
  for (let at = notes + <usize>u32At(firstNotes, place) * NOTE_BYTES; at < end; at += NOTE_BYTES) {
    // Stage 0 has no notes: the peer is where a chunk ends.
    const stage = load<u32>(at);
    fill(stage, load<u32>(at, 12), load<i64>(at, 16), 0, isStriped && stage == 1);
  }
}

function sumUp(place: u32): void {
  const count = u32At(uses, place);
  const end = notes + <usize>u32At(endNotes, place) * NOTE_BYTES;
  for (let at = notes + <usize>u32At(firstNotes, place) * NOTE_BYTES; at < end; at += NOTE_BYTES) {
    addSums(load<u32>(at), load<u32>(at, 4), load<u32>(at, 8), load<u32>(at, 12), load<i64>(at, 16), count);
  }
}
