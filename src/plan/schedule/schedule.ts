import { hostOf, type NormalTopology, speedsBetween } from "../input/topology.ts";
import type { Channels } from "../planner/channels.ts";
import { bucketGraph } from "../planner/listing.ts";
import type { Subject } from "../planner/question.ts";
import { bucketJobs, type Jobs, sliceJobs, type Wiring } from "./jobs.ts";
import { simulate } from "./simulate.ts";

/** One end of a rank's link: what it sends or receives, within its host or across hosts. */
export interface LinkEnd {
  readonly rank: number;
  readonly direction: "out" | "in";
  readonly reach: "host" | "network";
  readonly wireBytes: bigint;
  /** How long it is busy if it never waits, in nanoseconds. */
  readonly busy: number;
}

/** When everything is expected to happen, from a plan's topology. Times are in nanoseconds, integers. */
export interface Schedule {
  readonly channels: Channels;
  /** For each channel, when its first byte leaves and when its last one has arrived. */
  readonly start: Float64Array;
  readonly end: Float64Array;
  /** When the last byte has arrived. */
  readonly makespan: number;
  /** What no schedule can beat: the busiest end of a link, or the longest chain of buckets that wait for each other. */
  readonly lowerBound: number;
  /** Which of the two it is. */
  readonly boundBy: "link" | "chain";
  /** The makespan over the lower bound; 1 if nothing is sent. */
  readonly ratio: number;
  /**
   * What the busiest end of each stage takes, one stage after the other: about the least if stages do not overlap, which is over
   * NCCL, whose steps are known beforehand. All other times are of transports whose receivers ask for buckets as they want them.
   */
  readonly stagesInTurn: number;
  /** The end that is busy longest, of several the lowest rank's; `undefined` if nothing is sent. */
  readonly busiest: LinkEnd | undefined;
  /** True if every bucket was looked at; of larger plans it is parts of channels. */
  readonly isByBucket: boolean;
  /** Bytes between ranks of one host, and across hosts. */
  readonly hostBytes: bigint;
  readonly networkBytes: bigint;
}

/** Plans of more chunks than this are scheduled by parts of channels, and at most so many parts. */
const chunksByBucket = 2 ** 18;
const slicesInAll = 2 ** 19;

/** Ends of each rank, by number: out and in, within the host, then across. */
const endsPerRank = 4;

/** Predicts when each channel of a plan begins and ends. */
export function makeSchedule(subject: Subject, channels: Channels, topology: NormalTopology): Schedule {
  const chunks = channels.chunks.reduce((sum, count) => sum + count, 0);
  const isByBucket = chunks <= chunksByBucket;
  const jobs = isByBucket ? bucketJobs(channels, bucketGraph(subject)) : sliceJobs(channels, slicesInAll);
  const speeds = speedsOf(channels, topology);
  const wiring = wire(subject, channels, topology, jobs, speeds);
  const { start, end } = simulate(channels, jobs, wiring);
  const makespan = end.reduce((last, time) => Math.max(last, time), 0);
  const busiest = busiestEnd(channels, wiring, speeds);
  const link = busiest === undefined ? 0 : busiest.busy + wiring.latency;
  const chain = isByBucket ? longestChain(channels, jobs, wiring) : 0;
  const lowerBound = Math.max(link, chain);
  return {
    channels,
    start,
    end,
    makespan,
    lowerBound,
    boundBy: chain > link ? "chain" : "link",
    ratio: lowerBound === 0 ? 1 : makespan / lowerBound,
    stagesInTurn: stagesInTurn(channels, wiring, speeds),
    busiest,
    isByBucket,
    ...bytesByReach(channels, wiring),
  };
}

/** The speed of each channel, in MB/s. */
function speedsOf({ count, srcRank, dstRank }: Channels, topology: NormalTopology): Float64Array {
  const between = speedsBetween(topology);
  return Float64Array.from({ length: count }, (_, row) =>
    between(hostOf(topology, srcRank[row]!), hostOf(topology, dstRank[row]!)),
  );
}

function wire(
  { input }: Subject,
  { count, srcRank, dstRank }: Channels,
  topology: NormalTopology,
  jobs: Jobs,
  speeds: Float64Array,
): Wiring {
  const outEnd = new Int32Array(count).fill(-1);
  const inEnd = new Int32Array(count).fill(-1);
  const duration = new Float64Array(jobs.count);
  for (let row = 0; row < count; row++) {
    if (srcRank[row] === dstRank[row]) continue;
    const across = hostOf(topology, srcRank[row]!) === hostOf(topology, dstRank[row]!) ? 0 : 2;
    outEnd[row] = srcRank[row]! * endsPerRank + across;
    inEnd[row] = dstRank[row]! * endsPerRank + across + 1;
    for (let job = jobs.first[row]!; job < jobs.first[row + 1]!; job++) {
      duration[job] = Math.ceil((jobs.bytes[job]! * 1000) / speeds[row]!);
    }
  }
  const latency = topology.latencyUs * 1000;
  return {
    outEnd,
    inEnd,
    ends: input.world * endsPerRank,
    duration,
    latency,
    inFlight: input.peersInFlight * input.bucketsInFlight,
    bucketBytes: input.bucketBytes,
  };
}

function stagesInTurn(channels: Channels, wiring: Wiring, speeds: Float64Array): number {
  let sum = 0;
  for (const stage of [0, 1, 2]) {
    const busiest = busiestEnd(channels, wiring, speeds, (row) => channels.stage[row] === stage);
    sum += busiest === undefined ? 0 : busiest.busy + wiring.latency;
  }
  return sum;
}

/** A megabyte a second is a byte a microsecond. What a channel takes is rounded down, so that sums stay a bound. */
function busiestEnd(
  channels: Channels,
  { outEnd, inEnd, ends }: Wiring,
  speeds: Float64Array,
  counts: (row: number) => boolean = () => true,
): LinkEnd | undefined {
  const busy = new Float64Array(ends);
  const bytes = new Float64Array(ends);
  for (let row = 0; row < channels.count; row++) {
    if (outEnd[row] === -1 || !counts(row)) continue;
    const wireBytes = channels.wireBytes[row]!;
    for (const end of [outEnd[row]!, inEnd[row]!]) {
      busy[end]! += Math.floor((wireBytes * 1000) / speeds[row]!);
      bytes[end]! += wireBytes;
    }
  }
  const most = busy.reduce((top, time) => Math.max(top, time), 0);
  const end = busy.indexOf(most);
  if (most === 0) return undefined;
  return {
    rank: Math.floor(end / endsPerRank),
    direction: end % 2 === 0 ? "out" : "in",
    reach: end % endsPerRank < 2 ? "host" : "network",
    wireBytes: BigInt(bytes[end]!),
    busy: most,
  };
}

/** Buckets wait for buckets of the stage before: jobs come in the order of their stages. */
function longestChain(channels: Channels, jobs: Jobs, { outEnd, duration, latency }: Wiring): number {
  const before = new Float64Array(jobs.count);
  let longest = 0;
  for (let row = 0; row < channels.count; row++) {
    const hop = outEnd[row] === -1 ? 0 : latency;
    for (let job = jobs.first[row]!; job < jobs.first[row + 1]!; job++) {
      const end = before[job]! + duration[job]! + hop;
      longest = Math.max(longest, end);
      for (let at = jobs.dependentFirst[job]!; at < jobs.dependentFirst[job + 1]!; at++) {
        const dependent = jobs.dependents[at]!;
        before[dependent] = Math.max(before[dependent]!, end);
      }
    }
  }
  return longest;
}

function bytesByReach({ count, bytes }: Channels, { outEnd }: Wiring) {
  const sums = [0, 0];
  for (let row = 0; row < count; row++) {
    if (outEnd[row] !== -1) sums[outEnd[row]! % endsPerRank < 2 ? 0 : 1]! += bytes[row]!;
  }
  return { hostBytes: BigInt(sums[0]!), networkBytes: BigInt(sums[1]!) };
}
