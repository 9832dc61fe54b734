/** What of the ends of one round is wrong, whatever happened to it. */
import type { ClusterOptions } from "./cluster.ts";
import { type Outcome, type Sides, usualSides } from "./protocol.ts";

export type Ends = readonly (Outcome | undefined)[];

export function described(outcomes: Ends): string {
  const one = (outcome: Outcome | undefined) => {
    if (outcome === undefined) return "absent";
    const { code, ms, message } = outcome;
    return `${code} ${Math.round(ms)} ms${message === undefined ? "" : ` (${message})`}`;
  };
  return outcomes.map(one).join(", ");
}

export function succeeded(outcomes: Ends): boolean {
  return outcomes.every((each) => each?.code === "none");
}

interface Expected {
  readonly commit: ClusterOptions["commit"];
  readonly step: number;
  readonly limitMs: number;
  readonly sides?: Sides;
  /** Where the round's failure began: all others that know of it name that rank. */
  readonly culprit?: number | undefined;
  /** The store has told somebody of votes that nobody gave. */
  readonly isForged?: boolean | undefined;
  /** Bytes have changed on their way: what a round that failed has left in tensors may be anything, unless it was staged. */
  readonly isCorrupted?: boolean | undefined;
}

/** Of calls of one round, by rank. Nothing is asked of a host that ended. */
export function judgeRound(
  outcomes: Ends,
  { commit, step, limitMs, culprit, isForged, isCorrupted, sides: { engines } = usualSides }: Expected,
): string[] {
  const wrong = judgeEnds(outcomes, limitMs);
  const by = (rank: number, what: string) => wrong.push(`rank ${rank}: ${what}`);
  outcomes.forEach((outcome, rank) => {
    if (outcome === undefined || outcome.code === "ended") return;
    const mayBeAnything = isCorrupted === true && commit === "direct" && outcome.code !== "none";
    if (outcome.steps.includes(-1) && !mayBeAnything) by(rank, "holds an element of no step");
    if (!engines.includes(rank)) return;
    const held = outcome.steps.join();
    if (outcome.code === "none" && held !== String(step))
      by(rank, `a completed round of step ${step} left steps ${held}`);
    if (commit !== "staged") return;
    if (outcome.steps.length > 1) by(rank, `a staged round was split: steps ${held}`);
    if (knows(outcome) && outcome.code !== "none" && outcome.steps.includes(step))
      by(rank, `a staged round that failed there (${outcome.code}) changed its tensors`);
  });
  if (commit === "staged" && isForged !== true) wrong.push(...judgeDecision(outcomes));
  if (culprit !== undefined) wrong.push(...judgeBlame(outcomes, culprit));
  return wrong;
}

/** What one rank's failure is on the others. */
const passedOn = ["TB_TIMEOUT", "TB_CANCELLED", "TB_PEER_LOST"];

function judgeBlame(outcomes: Ends, culprit: number): string[] {
  // Who comes after it was taken back is in the next round, where others may be absent.
  const taken = outcomes[culprit];
  const isTakenBack = taken?.code === "TB_CANCELLED";
  const isLater = ({ round }: Outcome) =>
    round !== undefined && taken?.round !== undefined && round > taken.round;
  return outcomes.flatMap((outcome, rank) => {
    if (rank === culprit || outcome === undefined || !passedOn.includes(outcome.code)) return [];
    const isOther = isTakenBack && (outcome.code === "TB_TIMEOUT" || isLater(outcome));
    if (outcome.rank === culprit || isOther) return [];
    return [
      `rank ${rank}: its ${outcome.code} names rank ${outcome.rank}, and not ${culprit}: ${outcome.message}`,
    ];
  });
}

/** How a call ends whose rank or client cannot know whether the round was committed. */
const ignorant = [
  ...["ended", "TB_IN_DOUBT", "TB_AGENT_LOST", "TB_AGENT_UNRESPONSIVE"],
  // Between the client and an agent that may know.
  ...["TB_BUS_FORMAT", "TB_NO_SPACE", "TB_QUEUE_STUCK"],
];

function knows(outcome: Outcome | undefined): outcome is Outcome {
  return outcome !== undefined && !ignorant.includes(outcome.code);
}

/** A staged round is completed by all who know how it ended, or by none. */
function judgeDecision(outcomes: Ends): string[] {
  const known = outcomes.filter(knows);
  const completed = known.filter(({ code }) => code === "none").length;
  if (completed === 0 || completed === known.length) return [];
  return [`a staged round was completed by ${completed} of ${known.length}: ${described(outcomes)}`];
}

/** Of any calls: each has ended in time, with a code. */
export function judgeEnds(outcomes: Ends, limitMs: number): string[] {
  return outcomes.flatMap((outcome, rank) => {
    if (outcome === undefined || outcome.code === "ended") return [];
    const wrong: string[] = [];
    if (outcome.code.startsWith("untyped")) wrong.push(`rank ${rank}: ${outcome.code}: ${outcome.message}`);
    if (outcome.ms > limitMs)
      wrong.push(`rank ${rank}: its call took ${Math.round(outcome.ms)} ms (${outcome.code})`);
    return wrong;
  });
}
