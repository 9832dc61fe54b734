/**
 * Which tensors a rank has to do with, so that nobody looks through those of others: classes whose sides lie on the
 * same sub-mesh are one place, and a rank stands in few places.
 */
import { alloc, allocZero } from "./arena";
import {
  classCount,
  classFirst,
  classTensor,
  DIRECT,
  Mesh,
  patternAt,
  Side,
  tensorAt,
  tensorCount,
  tensorPattern,
  tensorSourceBase,
  tensorTargetBase,
  world,
} from "./model";
import { sortByKey } from "./sort";
import { addU32, i64At, setI64, setU32, u32At } from "./words";

// @ts-ignore: decorator
@unmanaged
class Places {
  /** Classes by place: those of place p are `classes[first[p]]` up to `[first[p + 1]]`. */
  classes: usize;
  first: usize;
  count: u32;
  /** Tensors of the classes of each place. */
  tensors: usize;
  /** Places by rank: those of rank r are `places[pointers[r]]` up to `[pointers[r + 1]]`. */
  places: usize;
  pointers: usize;
}

let sources: Places = changetype<Places>(0);
let fans: Places = changetype<Places>(0);
let isBuilt: bool = false;

export function startHomes(): void {
  isBuilt = false;
}

function build(): void {
  if (isBuilt) return;
  isBuilt = true;
  sources = findPlaces(true);
  fans = findPlaces(false);
  marks = allocZero(tensorCount);
  list = alloc((<usize>tensorCount) << 2);
  keys = alloc((<usize>tensorCount) << 3);
  for (let place: u32 = 0; place < tensorCount; place++) setI64(keys, tensorAt(place), place);
}

/** Places of the sources of all classes, or of the targets of those that are striped. */
function findPlaces(asSource: bool): Places {
  const found = changetype<Places>(alloc(offsetof<Places>()));
  const all = alloc((<usize>classCount) << 3);
  found.classes = alloc((<usize>classCount) << 2);
  let classes: u32 = 0;
  for (let index: u32 = 0; index < classCount; index++) {
    const tensor = classTensor(classFirst(index));
    const pattern = patternAt(tensorPattern(tensor));
    if (!asSource && pattern.striping == DIRECT) continue;
    const kind = changetype<Side>(asSource ? pattern.source : pattern.target).subMesh;
    const base = asSource ? tensorSourceBase(tensor) : tensorTargetBase(tensor);
    setI64(all, index, ((<i64>kind) << 32) | base);
    setU32(found.classes, classes++, index);
  }
  sortByKey(found.classes, classes, all);
  found.first = alloc((<usize>classes + 1) << 2);
  found.count = 0;
  for (let at: u32 = 0; at < classes; at++) {
    const isNew = at == 0 || keyOf(all, found, at) != keyOf(all, found, at - 1);
    if (isNew) setU32(found.first, found.count++, at);
  }
  setU32(found.first, found.count, classes);
  found.tensors = allocZero((<usize>found.count) << 2);
  for (let place: u32 = 0; place < found.count; place++) {
    for (let at = u32At(found.first, place); at < u32At(found.first, place + 1); at++) {
      const index = u32At(found.classes, at);
      addU32(found.tensors, place, classFirst(index + 1) - classFirst(index));
    }
  }
  found.pointers = allocZero((<usize>world + 1) << 2);
  for (let place: u32 = 0; place < found.count; place++) visitRanks(found, place, asSource, 0);
  for (let rank: u32 = 0; rank < world; rank++) addU32(found.pointers, rank + 1, u32At(found.pointers, rank));
  found.places = alloc((<usize>u32At(found.pointers, world)) << 2);
  const filled = alloc((<usize>world + 1) << 2);
  memory.copy(filled, found.pointers, (<usize>world + 1) << 2);
  for (let place: u32 = 0; place < found.count; place++) visitRanks(found, place, asSource, filled);
  return found;
}

function keyOf(all: usize, found: Places, at: u32): i64 {
  return i64At(all, u32At(found.classes, at));
}

/** Counts the place with each of its ranks, one entry further on; or, with `filled`, notes it where that says. */
function visitRanks(found: Places, place: u32, asSource: bool, filled: usize): void {
  const tensor = classTensor(classFirst(u32At(found.classes, u32At(found.first, place))));
  const pattern = patternAt(tensorPattern(tensor));
  const side = changetype<Side>(asSource ? pattern.source : pattern.target);
  const base = asSource ? tensorSourceBase(tensor) : tensorTargetBase(tensor);
  const size = subMeshSize(side);
  for (let index: u32 = 0; index < size; index++) {
    const rank = subMeshRank(side, base, index);
    if (filled == 0) {
      addU32(found.pointers, rank + 1, 1);
    } else {
      setU32(found.places, u32At(filled, rank), place);
      addU32(filled, rank, 1);
    }
  }
}

export function subMeshSize(side: Side): u32 {
  let size: u32 = 1;
  for (let dim: u32 = 0; dim < changetype<Mesh>(side.mesh).ndim; dim++) size *= u32At(side.shape, dim);
  return size;
}

/** The rank at an index of the sub-mesh that begins at `base`, row-major. */
export function subMeshRank(side: Side, base: u32, index: u32): u32 {
  const mesh = changetype<Mesh>(side.mesh);
  let rest = index;
  let position = base;
  for (let dim = mesh.ndim; dim > 0; dim--) {
    const extent = u32At(side.shape, dim - 1);
    position += (rest % extent) * u32At(mesh.strides, dim - 1);
    rest /= extent;
  }
  return u32At(mesh.ranks, position);
}

let current: Places = changetype<Places>(0);
let placeAt: u32 = 0;
let placeEnd: u32 = 0;
let classAt: u32 = 0;
let classEnd: u32 = 0;

/** Begins with the classes that a rank is a source of, or a target of that hands on; then `nextClass` names them. */
export function startClasses(rank: u32, asSource: bool): void {
  build();
  current = asSource ? sources : fans;
  placeAt = u32At(current.pointers, rank);
  placeEnd = u32At(current.pointers, rank + 1);
  classAt = 0;
  classEnd = 0;
}

/** The next class of the rank; -1 after the last one. */
export function nextClass(): i32 {
  while (classAt == classEnd) {
    if (placeAt == placeEnd) return -1;
    const place = u32At(current.places, placeAt++);
    classAt = u32At(current.first, place);
    classEnd = u32At(current.first, place + 1);
  }
  return <i32>u32At(current.classes, classAt++);
}

let list: usize = 0;
/** The key of a tensor is its place in the walk. */
let keys: usize = 0;
let marks: usize = 0;
let isAll: bool = false;

/** Finds the tensors that have chunks at home at a rank, in the order of the walk; answers how many they are. */
export function findTensors(rank: u32): u32 {
  build();
  isAll = countAt(sources, rank) == tensorCount;
  if (isAll) return tensorCount;
  let count: u32 = 0;
  for (let side: u32 = 0; side < 2; side++) {
    startClasses(rank, side == 0);
    for (let index = nextClass(); index >= 0; index = nextClass()) {
      const end = classFirst(index + 1);
      for (let at = classFirst(index); at < end; at++) {
        const tensor = classTensor(at);
        if (load<u8>(marks + tensor) != 0) continue;
        store<u8>(marks + tensor, 1);
        setU32(list, count++, tensor);
      }
    }
  }
  for (let at: u32 = 0; at < count; at++) store<u8>(marks + u32At(list, at), 0);
  sortByKey(list, count, keys);
  return count;
}

/** Tensors of the places of a rank. */
function countAt(found: Places, rank: u32): u32 {
  let count: u32 = 0;
  for (let at = u32At(found.pointers, rank); at < u32At(found.pointers, rank + 1); at++) {
    count += u32At(found.tensors, u32At(found.places, at));
  }
  return count;
}

/** The tensor at a place of what `findTensors` found. */
export function foundTensor(at: u32): u32 {
  return isAll ? tensorAt(at) : u32At(list, at);
}
