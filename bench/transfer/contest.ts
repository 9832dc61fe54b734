/**
 * Cases of a transport between real processes, each beside a plain C program that moves the same bytes between as many
 * processes, over as many sockets or through mappings, or beside UCX's own program for measuring, with the best of several call
 * sizes. Both run in turn, in the same minute.
 */
import { type BenchTransport, groups, matrix, type TransferCase, type TransferGroup } from "./cases.ts";
import { Perftest } from "./perftest.ts";
import { type Ceiling, PlainProgram, Ranks, Workshop } from "./processes.ts";

export interface TransferOptions {
  readonly root: string;
  /** Interleaved pairs; default 11. */
  readonly pairs?: number | undefined;
  /** MiB of tensors in all; default 1,024. A multiple of 16. */
  readonly mebibytes?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface TransferResult {
  readonly name: string;
  readonly bytes: number;
  readonly pairs: number;
  /** Medians. */
  readonly seconds: number;
  readonly ceilingSeconds: number;
  /** Medians of what all processes together took of the processors: less at the mercy of what else runs. */
  readonly processorSeconds: number;
  readonly ceilingProcessorSeconds: number;
  readonly ceilingCallBytes: number;
  /** The median over the pairs of the ceiling's time by ours: 1 is the ceiling. */
  readonly ofCeiling: number;
  /** If the group has one other case: the median of that one's time by ours. */
  readonly ofTwin?: { readonly name: string; readonly ratio: number };
}

/** Rounds of each call size before one is chosen. */
const trials = 3;

/** Runs the cases of one transport. */
export async function contest(
  transport: BenchTransport,
  options: TransferOptions,
): Promise<TransferResult[]> {
  const { root, filter = "", log = () => {} } = options;
  const workshop = new Workshop(root);
  const results: TransferResult[] = [];
  try {
    const script = await workshop.bundleRank();
    for (const [number, group] of groups.entries()) {
      if (group.transport !== transport || !group.cases.some(({ name }) => name.includes(filter))) continue;
      for (const result of await benchGroup(script, workshop, number, group, options)) {
        log(describe(result));
        results.push(result);
      }
    }
  } finally {
    workshop.remove();
  }
  return results;
}

async function benchGroup(
  script: string,
  workshop: Workshop,
  number: number,
  group: TransferGroup,
  { pairs = 11, mebibytes = 1024 }: TransferOptions,
): Promise<TransferResult[]> {
  const tensors = (mebibytes * 2 ** 20) / matrix.bytes;
  const { program, args } = group.ceiling;
  const ceiling: Ceiling =
    program === "ucx_perftest"
      ? new Perftest(tensors * matrix.bytes)
      : await PlainProgram.start(workshop.compile(program), args(tensors));
  const ranks = await Ranks.start(script, number, group, tensors);
  try {
    const sizes: number[] = [];
    for (const [index] of group.cases.entries()) {
      sizes.push(await bestCallSize(ceiling, group, index));
      await ranks.run(index, true);
      await ranks.run(index);
    }
    const ours = group.cases.map((): Sample[] => []);
    const theirs = group.cases.map((): Sample[] => []);
    for (let pair = 0; pair < pairs; pair++) {
      for (const [index] of group.cases.entries()) {
        theirs[index]!.push(await sample(ceiling, () => ceiling.run(sizes[index]!, index)));
        ours[index]!.push(await sample(ranks, () => ranks.run(index)));
      }
    }
    return group.cases.map((one, index) => summarize(one, index, group, tensors, ours, theirs, sizes));
  } finally {
    ceiling.end();
    await ranks.end();
  }
}

interface Sample {
  readonly seconds: number;
  readonly processor: number;
}

async function sample(contestant: Ranks | Ceiling, run: () => Promise<number>): Promise<Sample> {
  const before = contestant.processorSeconds();
  const seconds = await run();
  return { seconds, processor: contestant.processorSeconds() - before };
}

/** The call size with the best median. */
async function bestCallSize(ceiling: Ceiling, group: TransferGroup, mode: number): Promise<number> {
  const { callSizes } = group.ceiling;
  await ceiling.run(callSizes[0]!, mode);
  let best = { seconds: Number.POSITIVE_INFINITY, size: 0 };
  for (const size of callSizes) {
    const times: number[] = [];
    for (let trial = 0; trial < trials; trial++) times.push(await ceiling.run(size, mode));
    const seconds = median(times);
    if (seconds < best.seconds) best = { seconds, size };
  }
  return best.size;
}

function summarize(
  { name }: TransferCase,
  index: number,
  group: TransferGroup,
  tensors: number,
  ours: readonly Sample[][],
  theirs: readonly Sample[][],
  sizes: readonly number[],
): TransferResult {
  const ratio = (of: readonly Sample[]) =>
    median(ours[index]!.map(({ seconds }, pair) => of[pair]!.seconds / seconds));
  const medianOf = (samples: readonly Sample[], key: keyof Sample) => median(samples.map((one) => one[key]));
  const twin = group.cases.length === 2 ? 1 - index : -1;
  return {
    name,
    bytes: tensors * matrix.bytes,
    pairs: ours[index]!.length,
    seconds: medianOf(ours[index]!, "seconds"),
    ceilingSeconds: medianOf(theirs[index]!, "seconds"),
    processorSeconds: medianOf(ours[index]!, "processor"),
    ceilingProcessorSeconds: medianOf(theirs[index]!, "processor"),
    ceilingCallBytes: sizes[index]!,
    ofCeiling: ratio(theirs[index]!),
    ...(twin < 0 ? {} : { ofTwin: { name: group.cases[twin]!.name, ratio: ratio(ours[twin]!) } }),
  };
}

function describe(result: TransferResult): string {
  const { name, bytes, seconds, ceilingSeconds, ofCeiling, ofTwin } = result;
  const processor = `${result.processorSeconds.toFixed(2)} s and ${result.ceilingProcessorSeconds.toFixed(2)} s of processors`;
  const speed = (time: number) => `${(bytes / time / 2 ** 30).toFixed(2)} GiB/s`;
  const twin = ofTwin === undefined ? "" : `, ${ofTwin.ratio.toFixed(2)} of ${ofTwin.name}`;
  return `${name}: ${speed(seconds)}, ceiling ${speed(ceilingSeconds)}, ${ofCeiling.toFixed(2)} of it${twin} (${processor})`;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
