/** What a direction of a batch on one rank is made of. */
import type { Deadline } from "../../deadline.ts";
import type { Execution } from "../../exec/executor.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { BatchId } from "../queue/commands.ts";
import type { MemoryTurn } from "./memory-turn.ts";
import type { Opposition } from "./opposition.ts";
import type { RoundLog } from "./round-log.ts";
import type { RoundNames } from "./round-names.ts";
import type { StagedCommit } from "./staged-commit.ts";
import type { TransferSignal } from "./transfer-signal.ts";

export type Role = "source" | "target";

export interface DirectionOptions {
  readonly batch: BatchId;
  readonly pairs: readonly string[];
  readonly number: number;
  readonly rank: number;
  readonly from: string;
  readonly to: string;
  /** What this rank is in it. */
  readonly roles: readonly Role[];
  /** The first source rank tidies up behind all others, that many rounds later. */
  readonly tidies: boolean;
  readonly lag: number;
  /** Notes that what was written of rounds up to that one is being removed. */
  readonly markTidied: (round: number, deadline: Deadline) => Promise<void>;
  readonly execution: Execution;
  readonly signal: TransferSignal;
  readonly log: RoundLog;
  readonly opposition: Opposition;
  readonly turn: MemoryTurn;
  readonly names: RoundNames;
  /** Absent if targets change as bytes arrive. */
  readonly staged?: StagedCommit | undefined;
  /** What the plan promises of a round, if it knows the links: used until earlier rounds promise better. */
  readonly predictedSeconds?: number | undefined;
  readonly tell: (event: AgentEvent) => void;
}
