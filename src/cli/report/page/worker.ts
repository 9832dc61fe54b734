import type { PlanRequest } from "./messages.ts";
import { replan } from "./replan.ts";

/** What is used of a worker's own scope. */
interface WorkerScope {
  onmessage: (event: MessageEvent<PlanRequest>) => void;
  postMessage(message: unknown): void;
}

const scope = globalThis as unknown as WorkerScope;
scope.onmessage = async ({ data }) => scope.postMessage(await replan(data));
