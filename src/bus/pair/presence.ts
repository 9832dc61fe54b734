/**
 * Finds out whether the agent that has written a record still runs. If the store has no leases, records outlive their agents; who
 * meets one that stands in its way asks the agent through the store, in which every agent waits to be asked anyway: that
 * wait is also how it learns that the store is lost.
 */
import { randomBytes } from "node:crypto";
import * as z from "zod";
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { pack } from "../queue/commands.ts";
import { decode } from "../queue/decode.ts";
import { agentKey, agentSchema } from "./records.ts";
import { type Rendezvous, recordVersion } from "./rendezvous.ts";

/** The agent that runs a rank. */
export interface Incumbent {
  readonly rank: number;
  /** Larger than that of every agent before it on its paths. */
  readonly generation: bigint;
}

/** What stands under an agent's `ask`: a question, or the end that others have come to believe in. */
const askSchema = z.union([
  z.strictObject({ token: z.string().regex(/^[0-9a-f]{16}$/) }),
  z.strictObject({ dead: z.bigint().min(0n) }),
]);

/** What stands there for the moment between an answer and the next question. */
const answered = Buffer.from([0]);

/** An agent that lives answers within this and some ways to the store and back. */
const answerMs = 1000;
/** Ways of a question and its answer, and as many again. */
const ways = 8;
/** Some of those who asked together may wait for the answer only when it has been taken away again. */
const attempts = 2;
/** How long an answer stands. */
const answerStandsMs = 10_000;
const cleaning = { timeoutMs: 1000 };
/** The longest wait of a store; it begins anew then. */
const watchMs = 2 ** 31 - 1;

const askKey = (rank: number) => `${agentKey(rank)}/ask`;
const answerKey = ({ rank, generation }: Incumbent, token: string) =>
  `${agentKey(rank)}/answer/${generation}/${token}`;
/** What an agent has answered and not taken back yet: its successor does that if it is killed. */
const saidKey = (rank: number) => `${agentKey(rank)}/said`;
const saidSchema = z.array(z.string());

/** True for the agent that runs its rank, as far as the store's records say. */
async function isIncumbent(
  rendezvous: Rendezvous,
  { rank, generation }: Incumbent,
  deadline: Deadline,
): Promise<boolean> {
  const agent = await rendezvous.read(agentKey(rank), agentSchema, deadline.rest);
  return agent?.generation === generation;
}

/**
 * True for an agent that answers. One that does not is declared dead: its record goes, so that nobody asks again, and if it
 * lives after all it learns of it as soon as it hears of the store (`Presence.answer`).
 */
export async function isPresent(
  rendezvous: Rendezvous,
  incumbent: Incumbent,
  deadline: Deadline,
): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    if (!(await isIncumbent(rendezvous, incumbent, deadline))) return false;
    const began = performance.now();
    const ask = await putQuestion(rendezvous, incumbent, deadline);
    if (ask === undefined) return false;
    const patienceMs = answerMs + ways * (performance.now() - began);
    if (await isAnswered(rendezvous, incumbent, ask.token, patienceMs, deadline)) return true;
    // Whoever has no time left has not waited long enough to say that it is dead.
    if (deadline.remainingMs === 0) return true;
    if (attempt < attempts) continue;
    if (await declareDead(rendezvous, incumbent, ask.bytes, deadline)) return false;
  }
}

interface Question {
  readonly token: string;
  readonly bytes: Uint8Array;
}

/** Asks, or joins who asks already; `undefined` if it has been declared dead. */
async function putQuestion(
  { store }: Rendezvous,
  { rank, generation }: Incumbent,
  { rest }: Deadline,
): Promise<Question | undefined> {
  const own = randomBytes(8).toString("hex");
  const bytes = pack({ token: own });
  let expected: Uint8Array | undefined;
  for (;;) {
    const { swapped, stored } = await store.compareAndSet(askKey(rank), expected, bytes, rest);
    if (swapped) return { token: own, bytes };
    const said = stored === undefined ? undefined : readAsk(stored);
    if (said !== undefined && "token" in said) return { token: said.token, bytes: stored! };
    if (said !== undefined && said.dead === generation) return undefined;
    expected = stored;
  }
}

async function isAnswered(
  { store }: Rendezvous,
  incumbent: Incumbent,
  token: string,
  patienceMs: number,
  deadline: Deadline,
): Promise<boolean> {
  const key = answerKey(incumbent, token);
  const timeoutMs = Math.min(patienceMs, deadline.remainingMs);
  try {
    await store.wait([key], { ...deadline.rest, timeoutMs });
  } catch (error) {
    if (isLate(error)) return false;
    throw error;
  }
  return true;
}

/** False if it has answered after all. */
async function declareDead(
  rendezvous: Rendezvous,
  incumbent: Incumbent,
  asked: Uint8Array,
  deadline: Deadline,
): Promise<boolean> {
  const { rank, generation } = incumbent;
  const { store } = rendezvous;
  const dead = pack({ dead: generation });
  const { swapped, stored } = await store.compareAndSet(askKey(rank), asked, dead, deadline.rest);
  if (!swapped && !(stored !== undefined && dead.equals(stored))) return false;
  if (!(await isIncumbent(rendezvous, incumbent, deadline))) return true;
  await rendezvous.remove(agentKey(rank), deadline.rest);
  // It may have heard of it and claimed its rank again before its record went: by a question it learns that it has none.
  const standing = await store.get(askKey(rank), deadline.rest);
  if (standing === undefined || !dead.equals(standing)) await putQuestion(rendezvous, incumbent, deadline);
  return true;
}

function readAsk(bytes: Uint8Array): z.infer<typeof askSchema> | undefined {
  const parsed = decode(askSchema, bytes);
  return parsed.success ? parsed.data : undefined;
}

function isLate(error: unknown): boolean {
  return error instanceof TensorBusError && error.code === "TB_TIMEOUT";
}

/** An agent's own part: that it runs its rank, and answers whoever asks. */
export class Presence {
  readonly #rendezvous: Rendezvous;
  readonly #self: Incumbent;
  /** Answers that stand, with what takes each away. */
  readonly #said = new Map<string, NodeJS.Timeout>();

  constructor(rendezvous: Rendezvous, self: Incumbent) {
    this.#rendezvous = rendezvous;
    this.#self = self;
  }

  /**
   * Says that this agent runs its rank. `TB_EXISTS` if another one does, and lives; `predecessor` is the generation of one
   * that is known to have ended.
   */
  async claim(predecessor: bigint | undefined, options: DeadlineOptions): Promise<void> {
    const deadline = new Deadline(options);
    const { rank, generation } = this.#self;
    const known = await this.#rendezvous.read(agentKey(rank), agentSchema, deadline.rest);
    const isOther =
      known !== undefined && known.generation !== generation && known.generation !== predecessor;
    if (isOther && (await isPresent(this.#rendezvous, { rank, generation: known.generation }, deadline))) {
      const message = `rank ${rank} is run by another agent in this namespace, which answers (generation ${known.generation})`;
      throw new TensorBusError("TB_EXISTS", message, { details: { rank, generation: known.generation } });
    }
    // What was asked or said of those before. Whatever is asked once the record stands is answered.
    await this.#rendezvous.store.delete(askKey(rank), deadline.rest);
    await this.stand(deadline.rest);
    const said = (await this.#rendezvous.read(saidKey(rank), saidSchema, deadline.rest)) ?? [];
    for (const key of said) await this.#rendezvous.store.delete(key, deadline.rest);
    await this.#rendezvous.remove(saidKey(rank), deadline.rest);
  }

  /** Writes the record, which somebody who guessed wrongly may have removed. */
  stand(options: DeadlineOptions): Promise<void> {
    const { rank, generation } = this.#self;
    return this.#rendezvous.publish(agentKey(rank), { version: recordVersion, generation }, options);
  }

  /** Answers until `signal` fires. Rejects with why there are no others any more: the store is lost, or this agent is dead to them. */
  async answer(signal: AbortSignal): Promise<never> {
    const { store } = this.#rendezvous;
    const { rank, generation } = this.#self;
    for (;;) {
      try {
        await store.wait([askKey(rank)], { timeoutMs: watchMs, signal });
      } catch (error) {
        if (isLate(error) && !signal.aborted) continue;
        throw error;
      }
      const bytes = await store.get(askKey(rank), { signal });
      const said = bytes === undefined ? undefined : readAsk(bytes);
      if (said !== undefined && "token" in said) {
        try {
          await this.#say(answerKey(this.#self, said.token));
        } catch (error) {
          // A store that stalls is not lost: the question still stands, and is answered again.
          if (isLate(error)) continue;
          throw error;
        }
        // Not to be deleted as it stands: meanwhile somebody may have written that this agent is dead.
        const { swapped } = await store.compareAndSet(askKey(rank), bytes, answered, { signal });
        if (!swapped) continue;
      }
      await store.delete(askKey(rank), { signal });
      const isDead =
        said !== undefined && "token" in said
          ? !(await isIncumbent(this.#rendezvous, this.#self, new Deadline({ signal })))
          : said?.dead === generation;
      if (!isDead) continue;
      throw new TensorBusError(
        "TB_TIMEOUT",
        `rank ${rank} did not answer for so long that others took it for dead`,
      );
    }
  }

  /** Takes the record back, and what was said. */
  async leave(): Promise<void> {
    const { rank } = this.#self;
    for (const key of [...this.#said.keys()]) await this.#takeBack(key);
    await this.#rendezvous.remove(agentKey(rank), cleaning).catch(() => {});
    await this.#rendezvous.store.delete(askKey(rank), cleaning).catch(() => {});
  }

  /** Not to be cut short: what is being written while this agent leaves could not be taken back. */
  async #say(key: string): Promise<void> {
    const { store } = this.#rendezvous;
    const { rank } = this.#self;
    clearTimeout(this.#said.get(key));
    const timer = setTimeout(() => void this.#takeBack(key), answerStandsMs);
    timer.unref();
    // Noted before it is written: an older answer that is taken back meanwhile leaves the record of what was said alone.
    this.#said.set(key, timer);
    await this.#rendezvous.publish(saidKey(rank), [...this.#said.keys()], cleaning);
    await store.set(key, Buffer.from("here"), { ...cleaning, leased: store.capabilities.lease });
  }

  async #takeBack(key: string): Promise<void> {
    clearTimeout(this.#said.get(key));
    this.#said.delete(key);
    // All are asked for at once: a store that answers late does so all the same.
    const keys = this.#said.size === 0 ? [key, saidKey(this.#self.rank)] : [key];
    const { store } = this.#rendezvous;
    await Promise.all(keys.map((each) => store.delete(each, cleaning).catch(() => {})));
  }
}
