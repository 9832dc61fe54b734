/**
 * The planner: what the host (`src/plan/planner/wasm.ts`) may call. One instance serves one question about one
 * plan at a time: `begin` and `open` give it the plan, `keep` says what stays when the next question about it
 * begins with `resume`; then come channels, then records, which the host reads where they lie.
 */
import { alloc, allocZero, mark, OF_CHUNKS, release, reset } from "./arena";
import { findChannel, markHomes, stageWaves, tableAt, tableLength, useTable } from "./channel-table";
import { findChannels } from "./channels";
import { boxCount, chunkCount, countTensor, countWorld } from "./count";
import { dependencies as dependencyList, dependencyFirst, findDependencies } from "./depend";
import { fail, TB_PLAN_TOO_LARGE } from "./error";
import { startHolders } from "./holders";
import { startHomes } from "./homes";
import { linksAt } from "./links";
import { fans, loadImage, reduces, wide, world } from "./model";
import {
  bucketChannel,
  bucketCount,
  bucketFirst,
  bucketSequence,
  bucketSize,
  order,
  orderRecords,
  usedCount,
  usedWave,
} from "./order";
import { programLength, writeProgram } from "./program";
import { startReplay, tallyHome } from "./replay";
import { startRoutes } from "./route";
import { recordBytes, recordCount, records, restartPieces, seen, toRecords } from "./sink";
import { startNearby } from "./nearby";
import { startShares } from "./shares";
import { openStripes, startStripes } from "./stripe";
import { buckets, endHome, endTally, kinds, ranks, startHome, startTally } from "./tally";
import { walkHome, walkRank, walkTensor } from "./walk";
import { i64At, NONE } from "./words";

export { errorCode, errorValue } from "./error";

/** Forgets everything, and makes room for the image of a plan. */
export function begin(bytes: u32): usize {
  reset();
  return alloc(bytes);
}

export function reserve(bytes: u32): usize {
  return alloc(bytes);
}

/** Takes the image that was written to `at`: the geometry of all patterns is made. */
export function open(at: usize): void {
  loadImage(at);
  startNearby();
  startHomes();
  startHolders();
  startRoutes();
  startShares();
  openStripes();
  startStripes();
}

let kept: usize = 0;

/** What the instance holds now stays for the next question. */
export function keep(): void {
  kept = mark();
}

/** Forgets everything since `keep`. */
export function resume(): void {
  release(kept);
  startNearby();
  startHomes();
  startHolders();
  startRoutes();
  startShares();
  startStripes();
}

export { findChannels, linksAt, stageWaves, tableAt, tableLength, useTable };

/**
 * Chunks that begin or end at `rank`, or of the whole world for -1, in order; answers how many there would
 * be. With `dependencies` also what each bucket waits for; for that, chunks of other ranks may be gathered
 * too.
 */
export function gather(rank: i32, limit: i64, dependencies: bool): i64 {
  const isWider = rank >= 0 && dependencies && (reduces || fans);
  const involved = isWider ? findInvolved(<u32>rank) : 0;
  const homes = isWider ? findHomes(involved) : 0;
  toRecords(limit, involved);
  if (rank >= 0 && homes == 0) {
    walkRank(<u32>rank);
  } else {
    for (let home: u32 = 0; home < world; home++) {
      if (homes == 0 || load<u8>(homes + home) != 0) walkHome(home);
    }
  }
  if (seen > limit) return seen;
  orderRecords(homes == 0 ? rank : -1);
  if (dependencies) findDependencies();
  return seen;
}

/**
 * Chunks of one tensor, of all ranks, with what each bucket waits for: in the waves of the plan, in buckets of
 * their own.
 */
export function gatherTensor(tensor: u32, limit: i64): i64 {
  toRecords(limit);
  walkTensor(tensor);
  if (seen > limit) return seen;
  orderRecords(-1);
  findDependencies();
  return seen;
}

/** Marks a rank and those that send to it what they were sent before: theirs are the buckets it waits for. */
function findInvolved(rank: u32): usize {
  const marks = allocZero(world);
  if (rank >= world) return marks;
  store<u8>(marks + rank, 1);
  for (let home: u32 = 0; home < world; home++) {
    const sends = findChannel(1, home, rank) != NONE || findChannel(2, home, rank) != NONE;
    if (sends) store<u8>(marks + home, 1);
  }
  return marks;
}

/** Marks the homes of all chunks that begin or end at a marked rank. */
function findHomes(marked: usize): usize {
  const marks = allocZero(world);
  memory.copy(marks, marked, world);
  markHomes(marked, marks);
  return marks;
}

/**
 * The program of a rank; answers where it lies, `programLength` how long it is. `digest` is the plan's,
 * `entries` are strides that `entryCount` local tensors have.
 */
export function program(rank: u32, digest: usize, entries: usize, entryCount: u32): usize {
  toRecords(i64.MAX_VALUE);
  if (rank < world) walkRank(rank);
  orderRecords(rank);
  return writeProgram(rank, digest, entries, entryCount);
}

/** Boxes (0) or chunks (1) of a tensor. */
export function count(tensor: u32, what: u32): i64 {
  countTensor(tensor);
  return what == 0 ? boxCount : chunkCount;
}

/** Chunks of all tensors. */
export function countAll(): i64 {
  return countWorld();
}

/** Sums take a while for each chunk: beyond this, minutes. */
const SUMMED: i64 = 1 << 32;

/** Refuses a plan that `sum` would take too long for; needs no channels, which may take as long. */
export function admitSum(): void {
  const chunks = countWorld();
  if (chunks > SUMMED) fail(TB_PLAN_TOO_LARGE, OF_CHUNKS, chunks);
}

/** Sums up all chunks of the world: answers where the words of the ranks lie. */
export function sum(): usize {
  startTally();
  startReplay();
  for (let home: u32 = 0; home < world; home++) {
    restartPieces();
    startHome();
    tallyHome(home);
    endHome(home);
  }
  endTally();
  return ranks;
}

/** After `sum`: chunks (0) or bytes (1) of a stage and kind. */
export function sumOfKind(stage: u32, kind: u32, what: u32): i64 {
  return i64At(kinds, (stage * 3 + kind) * 2 + what);
}

export function sumOfBuckets(stage: u32): i64 {
  return i64At(buckets, stage);
}

export function programBytes(): u32 {
  return programLength;
}

/** Says where the answers of `gather` lie, by number. */
export function answer(which: u32): u32 {
  switch (which) {
    case 0:
      return <u32>records;
    case 1:
      return <u32>recordBytes;
    case 2:
      return recordCount;
    case 3:
      return <u32>order;
    case 4:
      return bucketCount;
    case 5:
      return <u32>bucketChannel;
    case 6:
      return <u32>bucketSequence;
    case 7:
      return <u32>bucketFirst;
    case 8:
      return <u32>bucketSize;
    case 9:
      return usedCount;
    case 10:
      return <u32>usedWave;
    case 11:
      return <u32>dependencyFirst;
    case 12:
      return <u32>dependencyList;
    default:
      return u32(wide);
  }
}
