import type { Channels, Schedule } from "../../plan/index.ts";
import type { ChannelColumns, ReportSchedule } from "./report.ts";

/** Times are told apart to this part of the whole: finer than any screen, and short when compressed. */
const timeSteps = 2 ** 20;

/** The columns of every channel between two ranks, with times if they are predicted. */
export function channelColumns(channels: Channels, schedule: Schedule | undefined): ChannelColumns {
  const rows = [...channels.stage.keys()].filter((row) => channels.srcRank[row] !== channels.dstRank[row]);
  const step = schedule === undefined ? 1 : stepOf(schedule);
  const times = (column: Float64Array) => Uint32Array.from(rows, (row) => Math.round(column[row]! / step));
  return {
    stage: Uint8Array.from(rows, (row) => channels.stage[row]!),
    from: Uint32Array.from(rows, (row) => channels.srcRank[row]!),
    to: Uint32Array.from(rows, (row) => channels.dstRank[row]!),
    wave: Uint32Array.from(rows, (row) => channels.wave[row]!),
    bytes: Float64Array.from(rows, (row) => channels.bytes[row]!),
    ...(schedule !== undefined && { start: times(schedule.start), end: times(schedule.end) }),
  };
}

export function describeSchedule(schedule: Schedule): ReportSchedule {
  const { makespan, lowerBound, ratio, boundBy, busiest } = schedule;
  const seconds = (nanoseconds: number) => nanoseconds / 1e9;
  return {
    makespan: seconds(makespan),
    lowerBound: seconds(lowerBound),
    ratio,
    boundBy,
    busiest: busiest && { rank: busiest.rank, direction: busiest.direction, reach: busiest.reach },
    step: seconds(stepOf(schedule)),
  };
}

function stepOf({ makespan }: Schedule): number {
  return Math.max(1, makespan / timeSteps);
}
