/**
 * Which registration of a batch a rank joins: the lowest one that has not ended. One that is given up ends for all of its
 * ranks; what it ends for says whether those who still wait move on to the next one.
 */
import { type Deadline, waitUntil } from "../../deadline.ts";
import { type ErrorCode, TensorBusError } from "../../errors.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import type { BatchKeys } from "./records.ts";
import { batchSideSchema } from "./records.ts";
import { type BatchEnd, elsewhere, errorOfEnd, isRecent, originOf, RoundLog } from "./round-log.ts";

export interface Attempt {
  readonly number: number;
  readonly log: RoundLog;
  /** Fires when it has ended; the reason is the error. */
  readonly ended: AbortSignal;
  /** What was found wrong in the registration before it. */
  readonly before: BatchEnd | undefined;
}

export interface AttemptOptions {
  readonly rendezvous: Rendezvous;
  readonly keys: BatchKeys;
  readonly rank: number;
  readonly onFault: (error: unknown) => void;
}

/** An attempt that had failed before this rank came to it. */
export class MissedAttempt extends Error {
  readonly number: number;
  readonly error: TensorBusError;

  constructor(number: number, error: TensorBusError) {
    super(error.message);
    this.number = number;
    this.error = error;
  }
}

/** What is nobody's mistake: whoever waits may try again. */
const retried = new Set<ErrorCode>([
  "TB_PEER_LOST",
  "TB_CLIENT_LOST",
  "TB_AGENT_LOST",
  "TB_STORE_LOST",
  "TB_CLOSED",
  "TB_INVALIDATED",
  "TB_BATCH_UNKNOWN",
  "TB_QUARANTINED",
  "TB_CHECKSUM",
]);

export function isRetried({ code }: TensorBusError): boolean {
  return retried.has(code);
}

interface EndOptions extends Partial<Pick<BatchEnd, "retry" | "through">> {
  /** A rank has left in order, which has said so itself if it could. */
  readonly isOrderly?: boolean;
}

/** Ends an attempt, or a batch, for all of its ranks: at once, or after the rounds of which this one has its part. */
export function endAttempt(
  log: RoundLog,
  error: TensorBusError,
  own: number,
  { retry = isRetried(error), through = {}, isOrderly = false }: EndOptions = {},
): Promise<void> {
  const { message, details } = error;
  const { rank: _, ...rest } = details;
  const end = {
    rank: originOf(error, own),
    code: elsewhere(error),
    message,
    details: plain(rest),
    retry,
    through,
  };
  return log.appendEnd(end, isOrderly);
}

/** Details as what a record can carry; the rest is told by the message. */
function plain(details: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const isPlain = (value: unknown): boolean =>
    ["string", "number", "boolean"].includes(typeof value) ||
    (typeof value === "object" && value !== null && Object.values(value).every(isPlain));
  return Object.fromEntries(Object.entries(details).filter(([, value]) => isPlain(value)));
}

/**
 * The lowest attempt that has not ended, for a rank that has said nothing in it yet. One in which something was found wrong a
 * moment ago, before this rank had come to it (it was in none beyond `taken`), is this rank's error as well.
 */
export async function joinAttempt(
  options: AttemptOptions,
  side: string,
  taken: number,
  deadline: Deadline,
): Promise<Attempt> {
  const { rendezvous, keys, rank, onFault } = options;
  const known = await latestNumber(rendezvous, keys, deadline);
  let before: BatchEnd | undefined;
  for (let number = known + 1; ; number++) {
    const log = new RoundLog({ store: rendezvous.store, prefix: keys.log(number), onFault });
    await log.sync(deadline);
    if (log.end === undefined && (await isTaken(options, number, side, deadline))) {
      // A log that is being removed reads as one without its end; the number is raised before that.
      if ((await latestNumber(rendezvous, keys, deadline)) >= number) {
        log.close();
        continue;
      }
      const message = `rank ${rank} registers it anew`;
      await log.appendEnd({ rank, code: "TB_PEER_LOST", message, details: {}, retry: true, through: {} });
    }
    if (log.end === undefined) {
      if (number > known + 1) raiseLatest(rendezvous, keys, number - 1, deadline).catch(() => {});
      return open(number, log, before);
    }
    before = log.end.retry ? undefined : log.end;
    log.close();
    if (before !== undefined && number > taken && isRecent(before))
      throw new MissedAttempt(number, errorOfEnd(before));
  }
}

/**
 * True if the side was put together, or ranks have prepared, without this rank having said anything: in an earlier life. The
 * record of a side may have gone with its leader, what was counted has not.
 */
async function isTaken(
  { rendezvous, keys }: AttemptOptions,
  number: number,
  side: string,
  deadline: Deadline,
): Promise<boolean> {
  const [united, prepared] = await Promise.all([
    rendezvous.read(keys.side(number, side), batchSideSchema, deadline.rest),
    rendezvous.store.get(keys.prepared(number), deadline.rest),
  ]);
  return united !== undefined || prepared !== undefined;
}

function open(number: number, log: RoundLog, before: BatchEnd | undefined): Attempt {
  const ended = new AbortController();
  log.listen((entry) => {
    if (entry.kind === "ended" && log.isOver) ended.abort(errorOfEnd(entry));
  });
  log.watch();
  return { number, log, ended: ended.signal, before };
}

async function latestNumber(rendezvous: Rendezvous, keys: BatchKeys, deadline: Deadline): Promise<number> {
  const bytes = await rendezvous.store.get(keys.latest, deadline.rest);
  const number = bytes === undefined ? 0 : Number(Buffer.from(bytes).toString("latin1"));
  if (Number.isSafeInteger(number) && number >= 0) return number;
  throw new TensorBusError("TB_VERSION", `the record ${keys.latest} does not hold a number`, {
    details: { key: keys.latest },
  });
}

/** Attempts up to that one have ended: nobody has to read their logs any more. */
export async function raiseLatest(
  rendezvous: Rendezvous,
  keys: BatchKeys,
  number: number,
  deadline: Deadline,
): Promise<void> {
  let expected = await rendezvous.store.get(keys.latest, deadline.rest);
  while (expected === undefined || Number(Buffer.from(expected).toString("latin1")) < number) {
    const desired = Buffer.from(String(number));
    const { swapped, stored } = await rendezvous.store.compareAndSet(
      keys.latest,
      expected,
      desired,
      deadline.rest,
    );
    if (swapped) return;
    expected = stored;
  }
}

/** Resolves once all ranks of the batch have prepared: before that, nobody has it. */
export async function awaitPrepared(
  { rendezvous: { store }, keys }: AttemptOptions,
  { number }: Attempt,
  ranks: number,
  deadline: Deadline,
): Promise<void> {
  const prepared = await store.add(keys.prepared(number), 1n, deadline.rest);
  if (prepared === BigInt(ranks)) {
    await store.compareAndSet(keys.ready(number), undefined, Buffer.from("ready"), deadline.rest);
    return;
  }
  await waitUntil<void>("all ranks preparing", deadline, (resolve, reject) => {
    store.wait([keys.ready(number)], deadline.rest).then(resolve, reject);
    return () => {};
  });
}
