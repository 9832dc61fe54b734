import { itemSize } from "../../../src/layout/index.ts";
import type { Random } from "../../kit/random.ts";
import { PieceRing } from "./piece-ring.ts";
import type { Descriptor, ProgramChunk, ProgramEnd, ReadProgram } from "./program-reader.ts";
import { fold } from "./simulator.ts";
import { cast, decode, encode } from "./values.ts";

/** The memory of a local tensor, from its first element on. */
type Memory = (rank: number, tensor: number, kind: "source" | "target") => Uint8Array;

/** One bucket with its places in the programs of its two ends. */
interface Step {
  readonly sender: Runner;
  readonly sent: number;
  readonly receiver: Runner;
  readonly received: number;
}

/**
 * Runs the programs of all ranks on byte arrays, one bucket at a time, in a random order that dependencies, fold order,
 * the pools of pieces and the order within a channel allow. Throws if the two ends of a channel differ, a fold is out of order, or
 * the programs stop before their end.
 */
export function runPrograms(programs: readonly ReadProgram[], memory: Memory, random: Random): void {
  const runners = new Map(programs.map((program) => [program.rank, new Runner(program, memory)]));
  const queues = matchChannels(runners);
  const open = queues.filter((queue) => queue.length > 0);
  while (open.length > 0) {
    const ready = open.filter(([step]) => isReady(step!));
    if (ready.length === 0) throw new Error("the programs wait for one another for ever");
    const queue = ready[random.below(ready.length)]!;
    runStep(queue.shift()!);
    if (queue.length === 0) open.splice(open.indexOf(queue), 1);
  }
}

function matchChannels(runners: ReadonlyMap<number, Runner>): Step[][] {
  const arrivals = new Map<string, { readonly runner: Runner; readonly channel: number }>();
  let unmatched = 0;
  for (const runner of runners.values()) {
    runner.program.channels.forEach(({ stage, direction, peer }, channel) => {
      if (direction !== "receive") return;
      arrivals.set(`${stage}:${peer}:${runner.program.rank}`, { runner, channel });
      unmatched++;
    });
  }
  const queues: Step[][] = [];
  for (const sender of runners.values()) {
    for (const [number, channel] of sender.program.channels.entries()) {
      if (channel.direction === "receive") continue;
      const key = `${channel.stage}:${sender.program.rank}:${channel.peer}`;
      const arrival = channel.direction === "send" ? arrivals.get(key) : undefined;
      if (channel.direction === "send") {
        if (arrival === undefined) throw new Error(`channel ${key} has no receiver`);
        unmatched--;
        const other = arrival.runner.program.channels[arrival.channel]!;
        for (const field of ["wave", "bytes", "fingerprint"] as const)
          if (channel[field] !== other[field])
            throw new Error(`the ends of channel ${key} differ in ${field}`);
      }
      const receiver = arrival?.runner ?? sender;
      const received = receiver.program.channels[arrival?.channel ?? number]!.buckets;
      queues.push(
        channel.buckets.map((sent, index) => ({ sender, sent, receiver, received: received[index]! })),
      );
    }
  }
  if (unmatched !== 0) throw new Error("a channel has no sender");
  return queues;
}

function isReady({ sender, sent, receiver, received }: Step): boolean {
  return sender.mayStart(sent) && receiver.mayStart(received);
}

function runStep({ sender, sent, receiver, received }: Step): void {
  const from = sender.program.buckets[sent]!;
  const to = receiver.program.buckets[received]!;
  if (from.bytes !== to.bytes || from.chunks.length !== to.chunks.length)
    throw new Error("the two ends of a bucket differ");
  from.chunks.forEach((chunk, index) => {
    const other = to.chunks[index]!;
    if (
      chunk.elements !== other.elements ||
      chunk.types.wire !== other.types.wire ||
      chunk.tensor !== other.tensor ||
      chunk.position !== other.position
    )
      throw new Error("the two ends of a chunk differ");
    receiver.unpack(other, sender.pack(chunk));
  });
  sender.complete(sent);
  if (receiver !== sender) receiver.complete(received);
}

/** One rank: its program, its memory, and the pieces that it reduces. */
class Runner {
  readonly program: ReadProgram;
  readonly #memory: Memory;
  readonly #done = new Set<number>();
  /** Contributions so far, by piece: for each position the elements in the piece's type. */
  readonly #pieces: (readonly number[])[][];
  readonly #ring: PieceRing;

  constructor(program: ReadProgram, memory: Memory) {
    this.program = program;
    this.#ring = new PieceRing(program);
    this.#memory = memory;
    this.#pieces = program.pieces.map(() => []);
  }

  mayStart(bucket: number): boolean {
    const { dependencies, foldAfter } = this.program.buckets[bucket]!;
    return (
      this.#ring.hasRoom(this.program.buckets[bucket]!) &&
      dependencies.every((other) => this.#done.has(other)) &&
      (foldAfter === undefined || this.#done.has(foldAfter))
    );
  }

  complete(bucket: number): void {
    this.#done.add(bucket);
    this.#ring.place(this.program.buckets[bucket]!);
    for (const { source } of this.program.buckets[bucket]!.chunks)
      if (source.kind === "piece") this.#ring.read(source.piece);
  }

  /** The elements of a chunk as they travel. */
  pack({ source, elements, types }: ProgramChunk): Uint8Array[] {
    if (source.kind === "piece")
      return this.#finished(source.piece).map((value) => cast(types.source, types.wire, value));
    const { bytes, places } = this.#places(source, elements, itemSize(types.source));
    return places.map((at) => cast(types.source, types.wire, bytes.slice(at, at + itemSize(types.source))));
  }

  unpack(
    { destination, elements, types, reduce, position }: ProgramChunk,
    values: readonly Uint8Array[],
  ): void {
    if (reduce && destination.kind === "piece") {
      const contributions = this.#pieces[destination.piece]!;
      if (contributions.length !== position) throw new Error("a contribution is folded out of its order");
      contributions.push(values.map((value) => decode(types.wire, value)));
      return;
    }
    const { bytes, places } = this.#places(destination, elements, itemSize(types.destination));
    places.forEach((at, index) => {
      bytes.set(cast(types.wire, types.destination, values[index]!), at);
    });
  }

  #finished(index: number): Uint8Array[] {
    const piece = this.program.pieces[index]!;
    const contributions = this.#pieces[index]!;
    if (contributions.length !== piece.contributions)
      throw new Error("a piece is read before it is complete");
    return contributions[0]!.map((_, element) => {
      const values = contributions.map((list) => list[element]!);
      return encode(piece.dtype, fold(piece.op, values, piece.divisor));
    });
  }

  #places(end: ProgramEnd, elements: number, size: number): { bytes: Uint8Array; places: number[] } {
    if (end.kind !== "buffer") throw new Error("an end that is no buffer");
    const { tensor, kind } = this.program.buffers[end.buffer]!;
    const bytes = this.#memory(this.program.rank, tensor, kind);
    const places = descriptorPlaces(end.descriptor, size);
    if (places.length !== elements)
      throw new Error("a descriptor has another count of elements than its chunk");
    if (places.some((at) => at < 0 || at + size > bytes.length))
      throw new Error("a descriptor leaves its memory");
    return { bytes, places };
  }
}

/** Byte offsets of the elements that a descriptor visits, in its order. */
function descriptorPlaces({ offset, loops, run }: Descriptor, size: number): number[] {
  let starts = [offset];
  for (const { count, stride } of loops)
    starts = starts.flatMap((start) => Array.from({ length: count }, (_, step) => start + step * stride));
  return starts.flatMap((start) => Array.from({ length: run / size }, (_, index) => start + index * size));
}
