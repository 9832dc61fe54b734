/**
 * Faults put back: one rule of the protocol broken in each, as texts that are replaced in the modules when they are bundled. The
 * simulation must find every one of them, by a violation of one of the rules that it breaks, within so many seeds.
 */
import type { Mutations } from "./build.mjs";

interface Mutation {
  readonly name: string;
  readonly changes: Mutations;
  /** Rules of `job/` of which one must be violated. */
  readonly breaks: readonly string[];
  /** From seed 1 on. */
  readonly within: number;
  /** The first that found it, once: it is tried before the others, as those before it take long. Another change may have it find nothing. */
  readonly seed?: number;
}

const second = "the second lockstep call succeeds";
const staged = "staged is all or nothing";
const delivered = "what a completed round delivered";
const late = "calls end in time";
const never = "every call ends";
const heard = "every end is heard";
const leaks = "nothing leaks";
const blame = "blame is right";
const opposed = "opposite directions are told";
const orderly = "a close in order ends nobody's round";
const broken = "a GPU that has failed ends its batch";
const held = "a batch that is over holds nobody up";
const anew = "registering anew works at the first try";

const join = "src/bus/batch/round-join.ts";
const log = "src/bus/batch/round-log.ts";
const commit = "src/bus/batch/staged-commit.ts";
const direction = "src/bus/batch/direction.ts";
const batches = "src/bus/batch/batches.ts";
const batch = "src/bus/batch/batch.ts";
const registrar = "src/bus/batch/registrar.ts";
const opposition = "src/bus/batch/opposition.ts";
const engine = "test/simulation/transport/transfer.ts";

export const mutations: readonly Mutation[] = [
  {
    name: "ranks count their own rounds, and learn of no failure but their own",
    changes: {
      [join]: [
        ["return Math.max(this.#next, log.next(from));", "return Math.max(this.#next, 0 * log.next(from));"],
        ["reading.isConfirmed = log.next(from) <= round;", "reading.isConfirmed = true;"],
        ['if (failure.details["hadFailed"] === true) return true;', ""],
      ],
    },
    breaks: [second],
    within: 50,
  },
  {
    name: "a round that fails is told to nobody by the log",
    changes: {
      [join]: [
        ['if (error.code === "TB_CLOSED" || round > log.last(from)) return;', "if (round > 0) return;"],
        ['if (failure.details["hadFailed"] === true) return true;', ""],
      ],
    },
    breaks: [second],
    within: 50,
  },
  {
    name: "telling others of a failure has no deadline",
    changes: {
      [join]: [
        ["appended, end).catch(() => {});", "appended, new Deadline({ timeoutMs: 1e9 })).catch(() => {});"],
      ],
    },
    breaks: [late, never],
    within: 300,
    seed: 84,
  },
  {
    name: "ranks that no channel connects are not linked",
    changes: {
      "src/exec/executor.ts": [
        [
          "ranks.length < 2 ? [] : linksOf(links(), ranks, session.rank)",
          "ranks.length < 0 ? linksOf(links(), ranks, session.rank) : []",
        ],
      ],
    },
    breaks: [second, "a lockstep call is one round"],
    within: 600,
    seed: 101,
  },
  {
    name: "a version is not compared with the one that the round carries",
    changes: {
      [join]: [["if (standing === version) return true;", "if (standing !== undefined) return true;"]],
    },
    breaks: ["versions are not mixed"],
    within: 30,
  },
  {
    name: "the first vote commits",
    changes: { [commit]: [["if (votes === BigInt(voters.length))", "if (votes <= BigInt(voters.length))"]] },
    breaks: [staged, delivered],
    within: 100,
    seed: 15,
  },
  {
    name: "who is late decides for itself that a round is not committed",
    changes: {
      [commit]: [
        ["return this.#propose(rendezvous, round, why, end);", "return { committed: false, error: why };"],
      ],
    },
    breaks: [staged],
    within: 300,
    seed: 35,
  },
  {
    name: "a lone call of a colocated rank waits for the other side without an end",
    changes: {
      [direction]: [
        [
          "if (call.started) return;\n      const message",
          "if (call.posters.size > 0) return;\n      const message",
        ],
      ],
    },
    breaks: [never],
    within: 200,
    seed: 12,
  },
  {
    name: "the end of a batch is kept by the rank on which it ended",
    changes: {
      [log]: [["return this.#append(entry, () => this.#ends.some(isSaid));", "return Promise.resolve();"]],
    },
    breaks: [heard, "every end is heard in time", "registering anew works at the first try"],
    within: 100,
    seed: 14,
  },
  {
    name: "the log is read when it is asked, and not followed",
    changes: {
      [log]: [
        ["if (this.#isWatched || this.#closed.signal.aborted) return;", "if (this.#head >= 0) return;"],
      ],
    },
    breaks: [heard, "every end is heard in time", second],
    within: 200,
    seed: 14,
  },
  {
    name: "what was written of rounds stays",
    changes: { [direction]: [["const upTo = completed - lag;", "const upTo = completed * 0;"]] },
    breaks: [leaks],
    within: 100,
    seed: 31,
  },
  {
    name: "the engine keeps no grant of a round that this rank has not begun",
    changes: {
      [engine]: [
        [
          "    channel.granted = round;\n    if (running === undefined) return;",
          "    if (running === undefined) return;\n    channel.granted = round;",
        ],
      ],
    },
    breaks: [second, "registering without faults works"],
    within: 50,
    seed: 6,
  },
  {
    name: "an agent takes up all pairs of the one before it, whether anyone asks for them or not",
    changes: {
      "src/bus/pair/pairs.ts": [
        ["this.#remembered.set(keyOf(spec), spec);", "this.#join(spec, undefined, rememberedMs);"],
      ],
    },
    breaks: ["registering at the first try works", never],
    within: 500,
    seed: 23,
  },
  {
    name: "records of the dead count while nobody has replaced them",
    changes: {
      "src/bus/pair/meeting.ts": [
        [
          "if (!(await isPresent(this.#rendezvous, { rank, generation }, deadline))) return true;",
          "if (!(await isIncumbent(this.#rendezvous, { rank, generation }, deadline))) return true;",
        ],
        ["type Incumbent, isPresent }", "type Incumbent, isIncumbent }"],
      ],
      "src/bus/pair/presence.ts": [["async function isIncumbent(", "export async function isIncumbent("]],
    },
    breaks: ["registering at the first try works"],
    within: 500,
    seed: 54,
  },
  {
    name: "what ends a call after its vote is reported in place of the doubt",
    changes: {
      [join]: [
        [
          'if (error.code === "TB_IN_DOUBT") throw error;',
          'if (error.code === "TB_IN_DOUBT") throw error.cause ?? error;',
        ],
      ],
    },
    breaks: [staged],
    within: 500,
    seed: 54,
  },
  {
    name: "a vote whose answer did not come is said again",
    changes: {
      [commit]: [
        [
          'const votes = await store.add(this.#key(round, "votes"), 1n, deadline.rest);',
          'const vote = (timeoutMs: number) => store.add(this.#key(round, "votes"), 1n, { timeoutMs });\n' +
            "      const votes = await vote(2).catch(() => vote(deadline.remainingMs));",
        ],
      ],
    },
    breaks: [staged, delivered, second],
    within: 200,
  },
  {
    name: "what one rank finds wrong while it registers is told to nobody",
    changes: {
      [registrar]: [
        [
          "if (isFound && !log.isOver) await this.#endAttempt(log, error, !isLasting && isRetried(error));",
          "",
        ],
      ],
    },
    breaks: ["what one rank lacks is every rank's error"],
    within: 100,
    seed: 8,
  },
  {
    name: "a registration that ends for nobody's mistake ends for those who wait as well",
    changes: {
      [registrar]: [["if (end?.retry && deadline.remainingMs > 0 && goesOn) continue;", ""]],
    },
    breaks: [anew, "registering at the first try works"],
    within: 800,
    seed: 187,
  },
  {
    name: "a rank has a batch that others have not prepared",
    changes: {
      [registrar]: [
        [
          "await awaitPrepared(attempts, attempt, roster.ranks.length, deadline);",
          "void awaitPrepared(attempts, attempt, roster.ranks.length, deadline).catch(() => {});",
        ],
      ],
    },
    breaks: ["nobody has a batch before all have prepared it"],
    within: 20,
  },
  {
    name: "a rank that comes back takes part in the registration of its earlier life",
    changes: {
      "src/bus/batch/attempt.ts": [
        [
          "if (log.end === undefined && (await isTaken(options, number, side, deadline))) {",
          "if (log.end === undefined && number < 0 && (await isTaken(options, number, side, deadline))) {",
        ],
      ],
    },
    breaks: [anew, leaks],
    within: 200,
    seed: 11,
  },
  {
    name: "only the round before the last that was completed is tidied",
    changes: {
      [direction]: [
        [
          "for (; this.#tidied < upTo; this.#tidied++) {",
          "this.#tidied = Math.max(this.#tidied, upTo - 1);\n    for (; this.#tidied < upTo; this.#tidied++) {",
        ],
      ],
    },
    breaks: [leaks],
    within: 100,
  },
  {
    name: "the next registration removes nothing of those before",
    changes: { [registrar]: [["if (rank === roster.ranks[0])", "if (rank < 0)"]] },
    breaks: [leaks],
    within: 200,
  },
  {
    name: "nobody looks who waits in the opposite direction",
    changes: {
      [direction]: [["if (error !== undefined && stands())", "if (error === null)"]],
    },
    breaks: [opposed],
    within: 100,
  },
  {
    name: "who finds an opposite direction tells its own alone",
    changes: {
      [opposition]: [
        ['void log.appendFailed({ from: opposite, round: found.round, rank, code: "TB_BUSY" });', ""],
      ],
    },
    breaks: [opposed],
    within: 100,
  },
  {
    name: "a rank blames itself for what it was told",
    changes: {
      [log]: [
        ['return typeof rank === "number" ? rank : own;', 'return typeof rank === "string" ? 0 : own;'],
      ],
    },
    breaks: [blame, opposed],
    within: 50,
  },
  {
    name: "of those that were absent the highest is blamed",
    changes: {
      "test/simulation/transport/exchange.ts": [["Math.min(...absent)", "Math.max(...absent)"]],
    },
    breaks: [blame],
    within: 100,
    seed: 12,
  },
  {
    name: "a rank that has voted blames itself at its deadline, and waits for nobody who knows",
    changes: { [commit]: [["timeoutMs = Math.min(blameMs, end.remainingMs);", "timeoutMs = 1;"]] },
    breaks: [blame],
    within: 1500,
    seed: 204,
  },
  {
    name: "the signal does not move on with the log",
    changes: { [direction]: [["this.#options.signal.follow(next);", ""]] },
    breaks: ["the signal speaks of the next round"],
    within: 200,
  },
  {
    name: "a call that joins a round that had failed ends with it",
    changes: {
      [join]: [
        ['if (failure.details["hadFailed"] === true) return true;', ""],
        ["return reading.isConfirmed === false;", "return false;"],
      ],
    },
    breaks: ["a round that had failed ends no call"],
    within: 800,
    seed: 202,
  },
  {
    name: "a close ends the rounds that its rank has completed",
    changes: {
      [batch]: [["this.#rank, { through });", "this.#rank, { through: { ...through, A: 0, B: 0 } });"]],
    },
    breaks: [orderly],
    within: 50,
    seed: 14,
  },
  {
    name: "a GPU that has failed for good ends no batch",
    changes: {
      [batches]: [["if (isDead || ends.includes(error.code))", "if (!isDead && ends.includes(error.code))"]],
    },
    breaks: [broken],
    within: 100,
    seed: 5,
  },
  {
    name: "a call that joins a batch that had ended waits for those who have left",
    changes: { [join]: [["if (ended !== undefined) local.abort(ended);", ""]] },
    breaks: [held, broken],
    within: 1500,
    seed: 444,
  },
  {
    name: "a rank that left in order is lost as well",
    changes: {
      "src/bus/agent/core.ts": [['event.error, event.kind === "peerLeft");', "event.error, false);"]],
    },
    breaks: [orderly],
    within: 500,
    seed: 43,
  },
  {
    name: "a store that has forgotten a round decides it anew",
    changes: { [commit]: [["life === this.#options.connection.life\n", "life.length > 0\n"]] },
    breaks: [staged, second],
    within: 1500,
    seed: 252,
  },
];
