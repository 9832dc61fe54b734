/**
 * Faults put back: one rule of the protocol broken in each, as texts that are replaced in the modules when they are bundled. The
 * simulation must find every one of them, by a violation of one of the rules that it breaks, within so many seeds.
 */
import type { Mutations } from "./build.mjs";

export interface Mutation {
  readonly name: string;
  readonly changes: Mutations;
  /** Rules of `job/` of which one must be violated. */
  readonly breaks: readonly string[];
  /** From seed 1 on. */
  readonly within: number;
}

const second = "the second lockstep call succeeds";
const staged = "staged is all or nothing";
const delivered = "what a completed round delivered";
const late = "calls end in time";
const never = "every call ends";
const heard = "every end is heard";
const leaks = "nothing leaks";

const join = "src/bus/batch/round-join.ts";
const log = "src/bus/batch/round-log.ts";
const commit = "src/bus/batch/staged-commit.ts";
const direction = "src/bus/batch/direction.ts";
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
        ['if (error.code === "TB_CLOSED" || log.end !== undefined) return;', "if (round > 0) return;"],
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
    within: 100,
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
  },
  {
    name: "the end of a batch is kept by the rank on which it ended",
    changes: {
      [log]: [["return this.#append(entry, () => this.#end !== undefined);", "return Promise.resolve();"]],
    },
    breaks: [heard, "every end is heard in time", "registering anew works at the first try"],
    within: 100,
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
  },
  {
    name: "what was written of rounds stays",
    changes: { [direction]: [["const upTo = completed - lag;", "const upTo = completed * 0;"]] },
    breaks: [leaks],
    within: 20,
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
    },
    breaks: ["registering at the first try works"],
    within: 500,
  },
];
