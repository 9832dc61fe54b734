/** What the batches of an agent need of it. */
import type { PlanOptions } from "../../plan/index.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { Pairs } from "../pair/pairs.ts";
import type { Uplink } from "../pair/uplink.ts";
import type { Records } from "../queue/state.ts";
import type { ClientMemory } from "./memory.ts";

export interface BatchesOptions {
  readonly rank: number;
  readonly generation: bigint;
  readonly uplink: Uplink;
  readonly state: Records;
  readonly pairs: Pairs;
  readonly memory: ClientMemory;
  /** For clients that name none. */
  readonly commit: "direct" | "staged";
  readonly checksum: boolean;
  readonly planning: PlanOptions;
  readonly tell: (event: AgentEvent) => void;
  readonly onFault: (error: unknown) => void;
}
