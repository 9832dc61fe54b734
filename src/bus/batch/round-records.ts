/** What stands in the store of the rounds of one direction: keys that are known, so that whoever comes later can remove them. */
import type { Deadline } from "../../deadline.ts";
import type { Store } from "../../store/store.ts";

/** Written of a round: by its signal, its names, and its votes. */
const kinds = ["posted", "state", "named", "votes", "decision"] as const;

/** A mark is written once in so many rounds: what was removed before is not looked for again. */
const markEvery = 4;
/** Rounds that are looked for, or removed, at once: a job of a thousand ranks leaves thousands of them. */
const atOnce = 16;
/**
 * Rounds in a row of which nothing stands, behind which nothing does: two marks, those that are being removed, and those of which a
 * removal that was cut short has taken some.
 */
const gap = 3 * markEvery + atOnce;

export function roundKey(prefix: string, round: number, what: (typeof kinds)[number]): string {
  return `${prefix}/${round}/${what}`;
}

/** The key that says up to which round everything is removed. */
function markKey(prefix: string): string {
  return `${prefix}/tidied`;
}

/** Says that what was written of rounds up to `round` is removed, or is being removed: who comes later begins behind that. */
export async function markTidied(
  store: Store,
  prefix: string,
  round: number,
  deadline: Deadline,
): Promise<void> {
  if (round % markEvery !== 0 || round <= markEvery) return;
  await store.set(markKey(prefix), Buffer.from(String(round - markEvery)), deadline.rest);
}

/**
 * Removes what is left of all rounds; `next` is the one after the last that failed. It looks for them: another rank may have been further
 * on than this one knows, as each that has left refuses one, and have tidied less than this one has completed, as rounds failed between.
 */
export async function forgetRounds(
  store: Store,
  prefix: string,
  next: number,
  deadline: Deadline,
): Promise<void> {
  const found: string[][] = [];
  let empty = 0;
  const mark = await store.get(markKey(prefix), deadline.rest);
  const tidied = mark === undefined ? 0 : Number(Buffer.from(mark).toString("latin1"));
  const first = Number.isSafeInteger(tidied) ? tidied + 1 : 1;
  for (let round = first; round < next || empty < gap; round += atOnce) {
    const rounds = Array.from({ length: atOnce }, (_, index) =>
      standingOf(store, prefix, round + index, deadline),
    );
    for (const standing of await Promise.all(rounds)) {
      empty = standing.length === 0 ? empty + 1 : 0;
      if (standing.length > 0) found.push(standing);
    }
  }
  await forgetKeys(store, prefix, found, deadline);
}

async function standingOf(
  store: Store,
  prefix: string,
  round: number,
  deadline: Deadline,
): Promise<string[]> {
  const keys = kinds.map((kind) => roundKey(prefix, round, kind));
  const values = await Promise.all(keys.map((key) => store.get(key, deadline.rest)));
  return keys.filter((_, index) => values[index] !== undefined);
}

/** From the last round down: what is cut short is found from the first one up again. */
async function forgetKeys(
  store: Store,
  prefix: string,
  keys: readonly (readonly string[])[],
  deadline: Deadline,
): Promise<void> {
  for (let end = keys.length; end > 0; end -= atOnce) {
    const some = keys.slice(Math.max(0, end - atOnce), end).flat();
    await Promise.all(some.map((key) => store.delete(key, deadline.rest)));
  }
  await store.delete(markKey(prefix), deadline.rest);
}
