import type { DType } from "../../layout/index.ts";
import type { ParameterSummary } from "../../model/parts/summary.ts";
import type { PatternStats, Stage } from "../../plan/index.ts";

/** What the page shows of a plan: plain values and columns, so that it can be embedded and sent to and from a worker. */
export interface Report {
  readonly summary: Summary;
  readonly ranks: RankColumns;
  readonly channels: ChannelColumns;
}

export interface Summary {
  /** The name of the spec's or the saved plan's file, without folders and suffix, so that equal plans have equal pages. */
  readonly name: string;
  readonly digest: string;
  readonly verified: boolean;
  readonly sides: readonly ReportSide[];
  /** True if a topology says on which host each rank stands. */
  readonly hasHosts: boolean;
  readonly tensors: number;
  readonly sourceBytes: number;
  readonly targetBytes: number;
  /** Bytes between ranks, in all stages, and within them. */
  readonly sent: number;
  readonly copied: number;
  readonly chunks: number;
  readonly buckets: number;
  readonly waves: number;
  readonly busiest: number | undefined;
  readonly imbalance: number;
  readonly stages: readonly ReportStage[];
  readonly patterns: readonly ReportPattern[];
  /** `undefined` if the model's tensors themselves are what the sides have. */
  readonly parameters: ReportParameters | undefined;
  readonly budgets: readonly ReportBudget[];
  /** `undefined` without a topology. */
  readonly schedule: ReportSchedule | undefined;
}

export interface ReportSide {
  readonly name: string;
  readonly mesh: readonly number[];
  readonly dimNames: readonly string[];
  readonly ranks: readonly number[];
}

interface ReportStage {
  readonly stage: Stage;
  readonly chunks: number;
  readonly buckets: number;
  readonly bytes: number;
  readonly waves: number;
}

export interface ReportPattern {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly targetDtype: DType;
  readonly source: readonly string[];
  readonly target: readonly string[];
  readonly tensors: number;
  /** The name of one of them. */
  readonly example: string;
  /** The parameter of the target that this one is a part of, if its name is another. */
  readonly within: string | undefined;
  /** Bytes of all its tensors, at the source. */
  readonly bytes: number;
  readonly chunks: number;
  readonly strategy: PatternStats["strategy"];
  readonly groups: PatternStats["groups"];
  readonly reason: PatternStats["reason"];
  /** What each way was expected to take, in seconds, if a topology let the planner choose. */
  readonly costs: { readonly direct: number; readonly all?: number; readonly host?: number } | undefined;
}

/** The parameters of the target, and what they are made of. */
export interface ReportParameters {
  readonly count: number;
  /** Pieces in which they were proved whole, on all ranks. */
  readonly pieces: number;
  /** Those that differ by the number of their layer alone are one. */
  readonly groups: readonly ParameterSummary[];
}

/** A budget of the spec, and what the plan comes to. */
export interface ReportBudget {
  readonly name: string;
  readonly limit: string;
  readonly found: string;
  /** By how much the plan exceeds it; `undefined` if it keeps to it. */
  readonly over: string | undefined;
  /** Which rank or link it is. */
  readonly where: string;
  /** The limit in bytes, if a chart can draw it. */
  readonly bytes: number | undefined;
}

/** By rank, ascending. Bytes are payload. */
export interface RankColumns {
  readonly rank: Uint32Array;
  readonly host: Uint32Array;
  readonly sent: Float64Array;
  readonly received: Float64Array;
  readonly copied: Float64Array;
  readonly reduced: Float64Array;
  readonly staged: Float64Array;
}

/** What goes from a rank to another in a stage, by (stage, source, destination); copies within a rank are not here. */
export interface ChannelColumns {
  readonly stage: Uint8Array;
  readonly from: Uint32Array;
  readonly to: Uint32Array;
  readonly wave: Uint32Array;
  readonly bytes: Float64Array;
  /** In steps of the schedule; not there without one. */
  readonly start?: Uint32Array;
  readonly end?: Uint32Array;
}

/** When the plan is expected to end, in seconds. */
export interface ReportSchedule {
  readonly makespan: number;
  /** What no schedule can beat. */
  readonly lowerBound: number;
  readonly ratio: number;
  readonly boundBy: "link" | "chain";
  readonly busiest:
    | { readonly rank: number; readonly direction: "out" | "in"; readonly reach: "host" | "network" }
    | undefined;
  /** What the times of channels are counted in. */
  readonly step: number;
}

/** The names of the stages, by their numbers. */
export const stageNames = ["reduce", "cross", "fanout"] as const;
