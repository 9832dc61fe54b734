/**
 * Keeps the ranks of a plan together whose channels do not: ranks that no channel connects, by whatever way, are linked, so
 * that their numbers of rounds stay one, and every failure and every end is heard by all.
 */
import type { PlanLinks } from "../transport/transport.ts";

/**
 * The ranks that `rank` is linked with. Each group of connected ranks is linked, by its lowest ranks, with the group that is
 * its parent in a binary tree over all groups: at most three links a rank, the same on all ranks.
 */
export function linksOf(
  { count, srcRank, dstRank }: PlanLinks,
  ranks: readonly number[],
  rank: number,
): number[] {
  const root = new Map(ranks.map((each) => [each, each]));
  const find = (of: number): number => {
    let top = of;
    while (root.get(top)! !== top) top = root.get(top)!;
    for (let at = of; at !== top; ) {
      const next = root.get(at)!;
      root.set(at, top);
      at = next;
    }
    return top;
  };
  for (let link = 0; link < count; link++) {
    const [one, other] = [srcRank[link]!, dstRank[link]!];
    if (!root.has(one) || !root.has(other)) continue;
    const [a, b] = [find(one), find(other)];
    // The lowest of a group stands for it.
    if (a !== b) root.set(Math.max(a, b), Math.min(a, b));
  }
  const groups = [...root.keys()].filter((each) => root.get(each) === each).sort((a, b) => a - b);
  const at = groups.indexOf(rank);
  if (at < 0) return [];
  const near = [(at - 1) >> 1, 2 * at + 1, 2 * at + 2];
  return near.flatMap((index) => (index < 0 || groups[index] === undefined ? [] : [groups[index]]));
}
