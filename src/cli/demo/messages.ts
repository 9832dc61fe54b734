import type { RankFailure } from "../reshard/messages.ts";

/** What the supervisor tells a client's process before anything else. */
export interface DemoJob {
  readonly kind: "job";
  readonly rank: number;
  readonly role: "source" | "target";
  /** The file with the plan's bytes: names, shapes and layouts of both sides. */
  readonly planPath: string;
  readonly checkpoint: string;
  /** The process of this rank's agent. */
  readonly agentPid: number;
  readonly timeoutMs: number;
}

/** What a rank does when it is told to. A source trains and sends; a target receives and verifies. */
const demoSteps = ["join", "train", "move", "verify"] as const;
export type DemoStep = (typeof demoSteps)[number];

export type DemoOrder =
  | DemoJob
  | { readonly kind: "step"; readonly step: DemoStep; readonly round: number }
  | { readonly kind: "end" };

/** What a rank has done in a step: bytes that it received or compared, and of a round its seconds. */
export interface StepReport {
  readonly bytes: number;
  readonly seconds: number;
  readonly predictedSeconds?: number;
}

export type DemoMessage =
  | { readonly kind: "progress"; readonly done: number; readonly total: number }
  | { readonly kind: "done"; readonly report: StepReport }
  | { readonly kind: "failed"; readonly failure: RankFailure };
