import { type Holding, holdingOf } from "../../layout/index.ts";
import type { Routing } from "../input/routing.ts";
import type { Chunk, ChunkKind, LogicalBuffer, PlanInput, Stage, TensorInput } from "../input/types.ts";
import { withTensor } from "../planner/listing.ts";
import type { Subject } from "../planner/question.ts";
import {
  type Box,
  boxAt,
  compareBoxes,
  globalBoxes,
  intersection,
  joinNeighbours,
  moved,
  volume,
} from "./boxes.ts";

/** Says where a box lies: whose buffer it is, the shape of that, and the box in its own indices. */
export interface Place {
  readonly rank: number;
  readonly buffer: LogicalBuffer;
  readonly shape: readonly number[];
  readonly box: Box;
}

/** A box of a tensor that goes from one rank to one rank in one stage: chunks that lie beside each other, joined. */
export interface Part {
  readonly stage: Stage;
  readonly kind: ChunkKind;
  /** Which elements of the whole tensor these are. */
  readonly global: Box;
  readonly from: Place;
  readonly to: Place;
  /** Payload bytes on the wire. */
  readonly bytes: bigint;
  /** How many chunks these elements travel in; one that is in several parts counts in the first. */
  readonly chunks: number;
}

/** A part of what a rank gets, and the parts that brought its elements to the rank that sends it. */
export interface Arrival extends Part {
  readonly before: readonly Arrival[];
}

/** A part of what a rank gives, and where it goes from there. */
export interface Departure extends Part {
  readonly after: readonly Departure[];
}

/** What a plan does with one rank's parts of one tensor. */
export interface Explanation {
  /** How the tensors of its pattern travel, and why. */
  readonly routing: Routing;
  /** What the rank holds of the tensor on either side; `undefined` if that is nothing. */
  readonly source: Holding | undefined;
  readonly target: Holding | undefined;
  /** Says where its part on the target comes from: stages cross and fanout, boxes ascending. */
  readonly arrivals: readonly Arrival[];
  /** Says where its part on the source goes, and what it passes on to other replicas of the target. */
  readonly departures: readonly (Arrival & Departure)[];
}

export function explainTensor(
  subject: Subject,
  input: PlanInput,
  routing: Routing,
  tensor: number,
  rank: number,
): Explanation {
  const holdings = new Holdings(input, input.tensors[tensor]!);
  const [source, target] = [holdings.of("source", rank), holdings.of("target", rank)];
  let parts = new Parts([]);
  withTensor(subject, tensor, (chunks) => {
    parts = collect(chunks, holdings, rank);
  });
  const arrivals = [...parts.arriving(1, rank), ...parts.arriving(2, rank)];
  const departures = ([0, 1, 2] as const).flatMap((stage) => parts.departing(stage, rank));
  return {
    routing,
    source: isEmpty(source) ? undefined : source,
    target: isEmpty(target) ? undefined : target,
    arrivals: arrivals.map((part) => withBefore(parts, part)),
    departures: departures.map((part) => ({ ...withBefore(parts, part), ...withAfter(parts, part) })),
  };
}

function isEmpty(holding: Holding | undefined): boolean {
  return holding === undefined || holding.localShape.includes(0);
}

/** What ranks hold of one tensor. */
class Holdings {
  readonly #input: PlanInput;
  readonly #tensor: TensorInput;
  readonly #known = new Map<string, Holding | undefined>();

  constructor(input: PlanInput, tensor: TensorInput) {
    this.#input = input;
    this.#tensor = tensor;
  }

  of(side: "source" | "target", rank: number): Holding | undefined {
    const key = `${side} ${rank}`;
    if (this.#known.has(key)) return this.#known.get(key);
    const { pair, shape } = this.#tensor;
    const holding = holdingOf(this.#input.pairs[pair]![side], shape, rank, this.#tensor[side] ?? {});
    this.#known.set(key, holding);
    return holding;
  }
}

/** The chunks that have to do with a rank: its own, those before what it gets, and those after what it gives. */
function collect(chunks: Iterable<Chunk>, holdings: Holdings, rank: number): Parts {
  const wanted = new Wanted();
  for (const stage of [0, 1, 2] as const) wanted.departing(stage, rank);
  wanted.arriving(1, rank);
  wanted.arriving(2, rank);
  const found: Part[] = [];
  while (wanted.next()) {
    for (const chunk of chunks) {
      const direction = wanted.directionOf(chunk);
      if (direction === undefined) continue;
      if (!wanted.wasTaken(chunk)) found.push(...partsOf(chunk, holdings));
      if (direction !== "departing") wantBefore(wanted, chunk);
      if (direction !== "arriving") wantAfter(wanted, chunk);
    }
  }
  return new Parts(found);
}

/** What a sender read was reduced from contributions, or was its own arrival. */
function wantBefore(wanted: Wanted, { stage, from, srcRank }: Chunk): void {
  if (stage === 2) wanted.arriving(1, srcRank);
  if (from === "reduced") wanted.arriving(0, srcRank);
}

/** A contribution is sent on once it is reduced, and what a replica receives it may pass on. */
function wantAfter(wanted: Wanted, { stage, from, srcRank, dstRank }: Chunk): void {
  if (from === "reduced") wanted.arriving(0, srcRank);
  if (stage === 0) wanted.departing(1, dstRank);
  if (stage === 1) wanted.departing(2, dstRank);
}

/** Which stages of which ranks are looked for, in this pass over the chunks and in the next one. */
class Wanted {
  #now = new Set<string>();
  #next = new Set<string>();
  readonly #done = new Set<string>();

  arriving(stage: Stage, rank: number): void {
    this.#want(`arriving ${stage} ${rank}`);
  }

  departing(stage: Stage, rank: number): void {
    this.#want(`departing ${stage} ${rank}`);
  }

  #want(key: string): void {
    if (!this.#done.has(key) && !this.#now.has(key)) this.#next.add(key);
  }

  /** Goes on to what was asked for in the last pass; false if that was nothing new. */
  next(): boolean {
    for (const key of this.#now) this.#done.add(key);
    this.#now = this.#next;
    this.#next = new Set();
    return this.#now.size > 0;
  }

  directionOf(chunk: Chunk): "arriving" | "departing" | "both" | undefined {
    const [arriving, departing] = keysOf(chunk).map((key) => this.#now.has(key));
    if (arriving && departing) return "both";
    return arriving ? "arriving" : departing ? "departing" : undefined;
  }

  /** True if the chunk was found in an earlier pass already, by its other end. */
  wasTaken(chunk: Chunk): boolean {
    return keysOf(chunk).some((key) => this.#done.has(key));
  }
}

function keysOf({ stage, srcRank, dstRank }: Chunk): [arriving: string, departing: string] {
  return [`arriving ${stage} ${dstRank}`, `departing ${stage} ${srcRank}`];
}

/** A chunk lies in one piece at both of its ends; in the whole tensor it is several if both ends hold the same runs. */
function partsOf(chunk: Chunk, holdings: Holdings): Part[] {
  const { stage, kind, srcRank, dstRank, from, to, lengths, bytes } = chunk;
  // Reduced pieces are shaped like the source tensor of the rank that reduces.
  const [sender, receiver] = [
    holdings.of(stage === 2 ? "target" : "source", srcRank)!,
    holdings.of(stage === 0 ? "source" : "target", dstRank)!,
  ];
  const [here, there] = [boxAt(chunk.srcOffsets, lengths), boxAt(chunk.dstOffsets, lengths)];
  return globalBoxes(there, receiver).map(({ local, global }, index) => ({
    stage,
    kind,
    global,
    from: { rank: srcRank, buffer: from, shape: sender.localShape, box: moved(local, there, here) },
    to: { rank: dstRank, buffer: to, shape: receiver.localShape, box: local },
    bytes: (bytes / volume(there)) * volume(local),
    chunks: index === 0 ? 1 : 0,
  }));
}

/** The parts that were found, by stage and either end; those of one channel that lie beside each other are one. */
class Parts {
  readonly #arriving: Map<string, Part[]>;
  readonly #departing: Map<string, Part[]>;

  constructor(parts: readonly Part[]) {
    const channels = groupBy(
      parts,
      ({ stage, from, to }) => `${stage} ${from.rank} ${to.rank} ${from.buffer}`,
    );
    const joined = [...channels.values()].flatMap((own) =>
      joinNeighbours(
        own,
        ({ global, from, to }) => [global, from.box, to.box],
        (one, other, [global, from, to]) => ({
          ...one,
          global: global!,
          from: { ...one.from, box: from! },
          to: { ...one.to, box: to! },
          bytes: one.bytes + other.bytes,
          chunks: one.chunks + other.chunks,
        }),
      ),
    );
    joined.sort(
      (a, b) => compareBoxes(a.global, b.global) || a.from.rank - b.from.rank || a.to.rank - b.to.rank,
    );
    this.#arriving = groupBy(joined, ({ stage, to }) => `${stage} ${to.rank}`);
    this.#departing = groupBy(joined, ({ stage, from }) => `${stage} ${from.rank}`);
  }

  arriving(stage: Stage, rank: number): readonly Part[] {
    return this.#arriving.get(`${stage} ${rank}`) ?? [];
  }

  departing(stage: Stage, rank: number): readonly Part[] {
    return this.#departing.get(`${stage} ${rank}`) ?? [];
  }
}

function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item]);
    else group.push(item);
  }
  return groups;
}

function withBefore(parts: Parts, part: Part): Arrival {
  return { ...part, before: contributionsOf(parts, part).map((before) => withBefore(parts, before)) };
}

/** The parts that brought what a part reads, cut to what it reads. */
function contributionsOf(parts: Parts, { stage, from, global }: Part): Part[] {
  if (stage === 2) return clipped(parts.arriving(1, from.rank), global);
  return from.buffer === "reduced" ? clipped(parts.arriving(0, from.rank), global) : [];
}

function withAfter(parts: Parts, part: Part): Departure {
  const { stage, to, global } = part;
  const after =
    stage === 2
      ? []
      : parts
          .departing(stage === 0 ? 1 : 2, to.rank)
          .filter(({ from }) => stage === 1 || from.buffer === "reduced");
  return { ...part, after: clipped(after, global).map((next) => withAfter(parts, next)) };
}

/** Those parts, or pieces of them, that lie in a box. */
function clipped(parts: readonly Part[], within: Box): Part[] {
  return parts.flatMap((part): Part[] => {
    const global = intersection(part.global, within);
    if (global === undefined) return [];
    return [
      {
        ...part,
        global,
        from: { ...part.from, box: moved(global, part.global, part.from.box) },
        to: { ...part.to, box: moved(global, part.global, part.to.box) },
        bytes: (part.bytes / volume(part.global)) * volume(global),
      },
    ];
  });
}
