/**
 * How what a registration has written goes again: the last rank that leaves it removes it, and whoever registers the next one
 * removes what ranks that have died, or a store that was lost, have left of those before.
 */
import { Deadline } from "../../deadline.ts";
import type { Store } from "../../store/store.ts";
import { type AttemptOptions, raiseLatest } from "./attempt.ts";
import { type BatchKeys, batchSideSchema } from "./records.ts";
import { graceMs } from "./round-join.ts";
import { RoundLog, settled } from "./round-log.ts";
import { forgetRounds } from "./round-records.ts";

/** The members of a registration: the names of its sides, and the ranks of both. */
export interface Roster {
  readonly sides: readonly string[];
  readonly ranks: readonly number[];
}

/** A registration that this rank has been in. */
export interface Left extends Roster {
  readonly number: number;
  /** Resolves when nothing that it has said of rounds is under way to the store. */
  readonly written: Promise<unknown>;
}

/** Says that this rank has left a registration. The last one to leave removes it. */
export async function leaveAttempt(options: AttemptOptions, left: Left, deadline: Deadline): Promise<void> {
  const { rendezvous, keys } = options;
  const { number, ranks, written } = left;
  // What came after the last rank has removed all would stay.
  const within = new Deadline({ timeoutMs: graceMs });
  await settled("what was said of rounds", written, within).catch(() => {});
  const count = await rendezvous.store.add(keys.left(number), 1n, deadline.rest);
  if (count === BigInt(ranks.length)) await forgetEnded(options, number, left, deadline);
}

/** Removes what this rank has said of its tensors, once all have prepared. */
export async function forgetRank(
  { rendezvous, keys, rank }: AttemptOptions,
  number: number,
  sides: readonly string[],
  deadline: Deadline,
): Promise<void> {
  const records = sides.flatMap((side) => [
    keys.rank(number, side, rank),
    keys.rankNames(number, side, rank),
  ]);
  await Promise.all(records.map((key) => rendezvous.remove(key, deadline.rest)));
}

/**
 * Removes what is left of a registration that has ended, and of those before it. Nobody may be in doubt of a round of theirs
 * any more: a decision that is gone would be made anew.
 */
export async function forgetEnded(
  options: AttemptOptions,
  last: number,
  roster: Roster,
  deadline: Deadline,
): Promise<void> {
  const { rendezvous, keys } = options;
  const { store } = rendezvous;
  // The log goes last of all: what has none is gone already, and so is all before it.
  const stands = async (number: number) =>
    number > 0 && (await store.get(`${keys.log(number)}/1`, deadline.rest)) !== undefined;
  if (!(await stands(last))) return;
  // Whoever looks for the lowest that has not ended must not take one for it whose log is gone.
  await raiseLatest(rendezvous, keys, last, deadline);
  let lowest = last;
  while (await stands(lowest - 1)) lowest -= 1;
  // From the lowest up: what a removal that is cut short leaves is found again by this walk.
  for (let number = lowest; number <= last; number++) await forgetOne(options, number, roster, deadline);
}

async function forgetOne(
  { rendezvous, keys, onFault }: AttemptOptions,
  number: number,
  roster: Roster,
  deadline: Deadline,
): Promise<void> {
  const { store } = rendezvous;
  const log = new RoundLog({ store, prefix: keys.log(number), onFault });
  await log.sync(deadline);
  for (const side of roster.sides) {
    const before = await rendezvous.read(keys.side(number, side), batchSideSchema, deadline.rest);
    // A job that was launched in another way had other ranks.
    const ranks = new Set([...roster.ranks, ...(before?.members ?? []).map(({ rank }) => rank)]);
    const records = [
      ...[...ranks].flatMap((rank) => [keys.rank(number, side, rank), keys.rankNames(number, side, rank)]),
      keys.side(number, side),
      keys.names(number, side),
    ];
    await Promise.all(records.map((key) => rendezvous.remove(key, deadline.rest)));
    await forgetRounds(store, keys.rounds(number, side), log.next(side), deadline);
  }
  await Promise.all(countersOf(keys, number).map((key) => store.delete(key, deadline.rest)));
  await forgetLog(store, keys.log(number), log.length, deadline);
}

function countersOf(keys: BatchKeys, number: number): string[] {
  return [keys.prepared(number), keys.ready(number), keys.waiting(number), keys.left(number)];
}

/** From the last entry down: what a removal that is cut short leaves behind is found from the first one up again. */
async function forgetLog(store: Store, log: string, length: number, deadline: Deadline): Promise<void> {
  for (let entry = length; entry > 0; entry--) await store.delete(`${log}/${entry}`, deadline.rest);
}
