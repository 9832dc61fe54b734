/** What a seed stands for: who is there, what they transfer, and what goes wrong when. */
import type { LayoutMessage } from "../../../src/bus/queue/commands.ts";
import { Random } from "../../kit/random.ts";

export type SideName = "A" | "B";
type Spread = "rows" | "columns" | "replicas" | "none";

export interface BatchPlan {
  readonly id: string;
  readonly pair: string;
  readonly commit: "direct" | "staged";
  readonly spreads: Readonly<Record<SideName, Spread>>;
  readonly tensors: number;
}

export type FaultKind =
  | "kill agent"
  | "kill host"
  | "stop agent"
  | "kill client"
  | "cut"
  | "cut one way"
  | "slow store"
  | "stall store"
  | "restart store"
  | "wipe store"
  | "cut store"
  | "cut store one way"
  | "drain agent"
  | "abort"
  | "call twice"
  | "abort ahead"
  | "clean up";

/** What a rank writes into the store in the middle of something: the last part of its key, or the folder of that. */
const moments = ["votes", "decision", "named", "posted", "log", "prepared", "side"] as const;
type Moment = (typeof moments)[number];

export interface Fault {
  readonly kind: FaultKind;
  /** Milliseconds after the faulty time has begun. */
  readonly at: number;
  /** It happens with the next such record that is written from then on. */
  readonly upon: Moment | undefined;
  readonly lastsMs: number;
  /** Index of a rank in `Scenario.ranks`, and of another. */
  readonly who: number;
  readonly other: number;
  readonly side: SideName;
}

/** What one rank's client does in a step. */
interface Part {
  /** Milliseconds after the step has begun; absent: it makes no call. */
  readonly at: number | undefined;
}

export interface Step {
  readonly batch: number;
  readonly from: SideName;
  readonly startsAt: number;
  /** By side and place in its ranks. */
  readonly parts: Readonly<Record<SideName, readonly Part[]>>;
}

/** Who transfers what: what a job was launched with. */
export interface Launch {
  readonly sides: Readonly<Record<SideName, readonly number[]>>;
  readonly batches: readonly BatchPlan[];
}

export interface Scenario extends Launch {
  readonly seed: number;
  readonly world: number;
  readonly ranks: readonly number[];
  /** All processes are killed in the end, and the job is launched anew under the same names, in another way. */
  readonly again: Launch | undefined;
  /** After all else, some ranks call in one direction and some in the other. */
  readonly opposed: boolean;
  /** In the end, each client closes as soon as its own last call is done. */
  readonly orderly: boolean;
  /** In the end, the GPU of a rank fails for good before calls that come one after the other. */
  readonly broken: boolean;
  /** In the end, one rank registers memory that does not hold its tensors. */
  readonly misfit: boolean;
  readonly versions: boolean;
  /** Targets name no version, and ask for that of the sources. */
  readonly asks: boolean;
  readonly networkMs: readonly [number, number];
  readonly storeMs: readonly [number, number];
  readonly lease: boolean;
  readonly peerTimeoutMs: number;
  readonly storeSilenceMs: number;
  readonly callTimeoutMs: number;
  /** Faults begin while ranks register, not after. */
  readonly early: boolean;
  readonly steps: readonly Step[];
  readonly faults: readonly Fault[];
}

/** Ranks that there can be. */
const world = 6;
/** Of each dimension of a global tensor: every side divides it. */
export const size = 12;

const spreads = ["rows", "columns", "replicas"] as const;

const frequent: readonly FaultKind[] = [
  "kill agent",
  "stop agent",
  "kill client",
  "abort",
  "abort",
  "cut",
  "slow store",
];
const all: readonly FaultKind[] = [
  ...frequent,
  "kill host",
  "cut one way",
  "stall store",
  "restart store",
  "wipe store",
  "cut store",
  "cut store one way",
  "drain agent",
  "call twice",
  "abort ahead",
  "clean up",
];

export function makeScenario(seed: number): Scenario {
  const random = new Random(seed);
  const [a, b] = [random.integer(1, 3), random.integer(1, 3)];
  const batchCount = random.chance(30) ? 2 : 1;
  const { sides, batches } = makeLaunch(random, a, b, batchCount);
  const ranks = ranksOf(sides);
  const callTimeoutMs = random.pick([400, 1000, 2000]);
  const slowStore = random.chance(10);
  const duration = random.integer(1, 4) * callTimeoutMs;
  return {
    seed,
    world,
    ranks,
    again: random.chance(8)
      ? makeLaunch(random, random.integer(1, 3), random.integer(1, 3), batchCount)
      : undefined,
    sides,
    batches,
    versions: random.chance(40),
    networkMs: random.pick([
      [0.05, 0.3],
      [0.1, 3],
    ]),
    storeMs: slowStore
      ? [4, 30]
      : random.pick([
          [0.1, 0.5],
          [0.2, 4],
          [0.5, 8],
        ]),
    lease: random.chance(50),
    peerTimeoutMs: random.pick([500, 2000]),
    storeSilenceMs: random.pick([800, 3000]),
    callTimeoutMs,
    early: random.chance(15),
    steps: makeSteps(random, batches, sides, duration, callTimeoutMs),
    faults: makeFaults(random, ranks, duration),
    misfit: random.chance(10),
    opposed: random.chance(20) && sides.A.every((rank) => !sides.B.includes(rank)),
    orderly: random.chance(60),
    asks: random.chance(30),
    broken: random.chance(15),
  };
}

function makeLaunch(random: Random, a: number, b: number, batches: number): Launch {
  return {
    sides: { A: range(0, a), B: range(random.chance(15) ? a - 1 : a, b) },
    batches: Array.from({ length: batches }, (_, index) => makeBatch(random, index, a === b)),
  };
}

/** Everyone who stands on a side. */
export function ranksOf(sides: Launch["sides"]): number[] {
  return [...new Set([...sides.A, ...sides.B])];
}

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}

function makeBatch(random: Random, index: number, isEven: boolean): BatchPlan {
  const bare = isEven && random.chance(25);
  return {
    id: `batch-${index}`,
    pair: `pair-${index}`,
    commit: random.chance(55) ? "staged" : "direct",
    spreads: bare ? { A: "none", B: "none" } : { A: random.pick(spreads), B: random.pick(spreads) },
    tensors: random.integer(1, 2),
  };
}

function makeSteps(
  random: Random,
  batches: readonly BatchPlan[],
  sides: Scenario["sides"],
  duration: number,
  callTimeoutMs: number,
): Step[] {
  const steps: Step[] = [];
  const backwards = random.chance(25);
  for (const batch of batches.keys()) {
    let at = random.integer(0, 20);
    while (at < duration && steps.length < 8) {
      const hasAbsent = random.chance(20);
      const part = (): Part => {
        if (hasAbsent && random.chance(35)) return { at: undefined };
        return { at: random.chance(12) ? random.integer(0, 2 * callTimeoutMs) : random.integer(0, 15) };
      };
      steps.push({
        batch,
        from: backwards && random.chance(40) ? "B" : "A",
        startsAt: at,
        parts: { A: sides.A.map(part), B: sides.B.map(part) },
      });
      at += random.integer(20, callTimeoutMs);
    }
  }
  return steps;
}

function makeFaults(random: Random, ranks: readonly number[], duration: number): Fault[] {
  const count = random.chance(5) ? 0 : random.integer(1, 4);
  return Array.from({ length: count }, (): Fault => {
    const who = random.integer(0, ranks.length - 1);
    // What decides a staged round takes a moment, in which most can go wrong.
    const upon = random.chance(30) ? random.pick([...moments, "votes", "decision"] as const) : undefined;
    return {
      kind: random.pick(upon !== undefined || random.chance(50) ? all : frequent),
      at: random.integer(0, duration),
      upon,
      lastsMs: random.pick([5, 50, 300, 1000, 4000]),
      who,
      other: (who + random.integer(1, Math.max(1, ranks.length - 1))) % ranks.length,
      side: random.pick(["A", "B"]),
    };
  }).sort((one, other) => one.at - other.at);
}

/** The layout of a side, and the shape of a rank's part with the global index of each of its elements. */
export function layoutOf(spread: Spread, ranks: readonly number[]): LayoutMessage | undefined {
  if (spread === "none") return undefined;
  const placements = { rows: ["S(0)"], columns: ["S(1)"], replicas: ["R"] }[spread];
  return { mesh: { shape: [ranks.length], ranks: [...ranks] }, placements };
}

export interface LocalPart {
  readonly shape: readonly [number, number];
  /** Row-major. */
  readonly globalIndex: readonly number[];
}

export function partOf(spread: Spread, place: number, count: number): LocalPart {
  const [rows, columns] = [
    spread === "rows" ? size / count : size,
    spread === "columns" ? size / count : size,
  ];
  const [top, left] = [spread === "rows" ? place * rows : 0, spread === "columns" ? place * columns : 0];
  return {
    shape: [rows, columns],
    globalIndex: Array.from(
      { length: rows * columns },
      (_, index) => (top + Math.floor(index / columns)) * size + left + (index % columns),
    ),
  };
}
