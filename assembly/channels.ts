/**
 * Finds the channels of the world, from one tensor of each class and place in the rotation rather than from all
 * tensors.
 */
import { alloc, allocZero } from "./arena";
import { foundChannels, startChannels, startChannelsOf } from "./channel-set";
import { buildTable } from "./channel-table";
import { nextClass, startClasses } from "./homes";
import {
  classCount,
  classFirst,
  classTensor,
  DIRECT,
  fans,
  hosts,
  Mesh,
  patternAt,
  patternCount,
  reduces,
  Side,
  world,
} from "./model";
import { toChannels } from "./sink";
import { stripePeriod } from "./stripe";
import { enter, enterSource, enterTarget, ordinal, pattern, source } from "./tensor";
import { walkFanout, walkSource } from "./walk";
import { commonMultiple, setU32, STAGES, u32At } from "./words";

/** Longer periods than this are not looked for: all tensors of the class are. */
const PERIOD_MOST: u32 = 4096;

/** How many ranks the targets of all patterns know. */
function countTargets(): u32 {
  const marks = allocZero(world);
  let count: u32 = 0;
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = patternAt(index);
    const mesh = changetype<Mesh>(changetype<Side>(one.target).mesh);
    for (let position: u32 = 0; position < mesh.size; position++) {
      const rank = u32At(mesh.ranks, position);
      if (load<u8>(marks + rank) != 0) continue;
      store<u8>(marks + rank, 1);
      count++;
    }
  }
  return count;
}

export function findChannels(): void {
  const targetCount = countTargets();
  const periods = classPeriods();
  const places = alloc(PERIOD_MOST);
  const pointers = alloc((<usize>world + 1) * 4 * STAGES);
  startChannels();
  toChannels();
  for (let home: u32 = 0; home < world; home++) {
    startChannelsOf(home);
    const first = foundChannels(1);
    for (let stage: u32 = 0; stage < STAGES; stage++) {
      setU32(pointers, stage * (world + 1) + home, foundChannels(stage));
    }
    startClasses(home, true);
    for (let index = nextClass(); index >= 0; index = nextClass()) {
      walkClass(home, index, u32At(periods, index), places, true);
      // Nobody is left to be found.
      if (!reduces && foundChannels(1) - first == targetCount) break;
    }
    if (!fans) continue;
    startClasses(home, false);
    for (let index = nextClass(); index >= 0; index = nextClass()) {
      walkClass(home, index, u32At(periods, index), places, false);
    }
  }
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    setU32(pointers, stage * (world + 1) + world, foundChannels(stage));
  }
  buildTable(pointers);
}

/**
 * For each class after how many tensors the same channels come again, 0 if that is unknown: those in one place
 * of all rotations use the same.
 */
export function classPeriods(): usize {
  const periods = alloc((<usize>classCount) << 2);
  for (let index: u32 = 0; index < classCount; index++) {
    enter(classTensor(classFirst(index)));
    const holders = source.replicas * source.contributions;
    // Which ranks are candidates differs from target to target if hosts, or ranks on both sides, matter.
    const isRegular = holders == 1 || (hosts == 0 && (!pattern.meeting || source.contributions == 1));
    const period = isRegular ? commonMultiple(holders, stripePeriod()) : 0;
    setU32(periods, index, period > <i64>PERIOD_MOST ? 0 : <u32>period);
  }
  return periods;
}

/** Finds the channels of a class that have their home at `home`, as a source or as a target. */
function walkClass(home: u32, index: u32, period: u32, places: usize, asSource: bool): void {
  const first = classFirst(index);
  const end = classFirst(index + 1);
  enter(classTensor(first));
  if (asSource ? !enterSource(home) : pattern.striping == DIRECT || !enterTarget(home)) return;
  let left = period;
  if (period > 1) memory.fill(places, 0, period);
  for (let at = first; at < end && (period == 0 || left > 0); at++) {
    enter(classTensor(at));
    if (period > 1) {
      const place = places + <u32>(ordinal % period);
      if (load<u8>(place) != 0) continue;
      store<u8>(place, 1);
    }
    left--;
    if (asSource) walkSource(home, false);
    else walkFanout(home);
  }
}
