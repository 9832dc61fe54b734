import type { PlanAnswer, PlanRequest } from "./messages.ts";
import { readPayload } from "./payload.ts";

/** Plans in a worker of its own, made from what the page carries, so that the page stays alive; it ends with the signal. */
export async function planInWorker(request: PlanRequest, signal: AbortSignal): Promise<PlanAnswer> {
  const script = new Blob([await readPayload("report-worker")], { type: "text/javascript" });
  const url = URL.createObjectURL(script);
  const worker = new Worker(url);
  try {
    return await new Promise<PlanAnswer>((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
      worker.onmessage = ({ data }: MessageEvent<PlanAnswer>) => resolve(data);
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage(request);
    });
  } finally {
    worker.terminate();
    URL.revokeObjectURL(url);
  }
}
