import type { LocalPiece } from "./local.ts";

/** Pieces by their places; those of one tensor that continue each other on both sides are one. */
export function mergePieces(pieces: readonly LocalPiece[]): LocalPiece[] {
  const sorted = [...pieces].sort((a, b) => compare(a.at, b.at));
  if (pieces.every(({ ordinal, source }) => ordinal === source)) return sorted;
  const merged: LocalPiece[] = [];
  for (const piece of sorted) {
    let current = piece;
    for (let index = merged.length - 1; index >= 0; index--) {
      const joined = join(merged[index]!, current);
      if (joined === undefined) continue;
      merged.splice(index, 1);
      current = joined;
      index = merged.length;
    }
    merged.push(current);
  }
  return merged.sort((a, b) => compare(a.at, b.at));
}

function join(a: LocalPiece, b: LocalPiece): LocalPiece | undefined {
  if (a.source !== b.source || a.axes.length !== b.axes.length) return undefined;
  let along = -1;
  for (let axis = 0; axis < a.at.length; axis++) {
    if (a.axes[axis] !== b.axes[axis]) return undefined;
    if (a.at[axis] === b.at[axis] && a.size[axis] === b.size[axis]) continue;
    if (along >= 0 || a.at[axis]! + a.size[axis]! !== b.at[axis]) return undefined;
    along = axis;
  }
  const dim = a.axes[along] ?? -1;
  if (dim < 0 || a.start[dim]! + a.length[dim]! !== b.start[dim]) return undefined;
  const others = a.start.every(
    (start, other) => other === dim || (start === b.start[other] && a.length[other] === b.length[other]),
  );
  if (!others) return undefined;
  const grown = (values: readonly number[], at: number, more: number) =>
    values.map((value, index) => (index === at ? value + more : value));
  return { ...a, size: grown(a.size, along, b.size[along]!), length: grown(a.length, dim, b.length[dim]!) };
}

function compare(a: readonly number[], b: readonly number[]): number {
  for (let axis = 0; axis < a.length; axis++) {
    if (a[axis] !== b[axis]) return a[axis]! - b[axis]!;
  }
  return 0;
}
