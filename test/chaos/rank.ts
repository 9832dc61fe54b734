/**
 * The host process of one rank of a cluster: a trainer that sends, or an engine that receives and looks at every element.
 * Does what its messages say, one at a time, but for an abort, and says how each ended.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import { TensorBusClient } from "../../src/bus/client/client.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { TensorBusError } from "../../src/errors.ts";
import { DeviceMesh } from "../../src/layout/index.ts";
import { type Outcome, type Request, type Sides, shapes, stepUnit } from "./protocol.ts";

export interface HostOptions {
  readonly rank: number;
  readonly sides: Sides;
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
}

type Act<Kind extends Request["act"]> = Extract<Request, { readonly act: Kind }>;

const { rank, sides, ...paths } = JSON.parse(process.argv[2]!) as HostOptions;
const { trainers, engines } = sides;
const sends = trainers.includes(rank);
const at = (sends ? trainers : engines).indexOf(rank);
const direction = sends ? "send" : "recv";

/** What of a tensor this rank holds: rows as a trainer, columns as an engine. */
const allocate = () =>
  shapes.map(([rows, columns]) =>
    SharedTensor.allocate(sends ? [rows / 2, columns] : [rows, columns / 2], "float64"),
  );
let locals = allocate();
let client: TensorBusClient | undefined;
let handler: BatchHandler | undefined;
let abort = new AbortController();

/** Calls for each local element with its index in the whole tensor. */
function eachElement(
  visit: (data: Float64Array, local: number, whole: number, tensor: number) => void,
): void {
  locals.forEach((local, tensor) => {
    const data = local.data as Float64Array;
    const [rows, columns] = local.shape as [number, number];
    const width = shapes[tensor]![1];
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const whole = sends ? (row + at * rows) * width + column : row * width + column + at * columns;
        visit(data, row * columns + column, whole, tensor);
      }
    }
  });
}

function fill(step: number): void {
  eachElement((data, local, whole, tensor) => {
    data[local] = step * stepUnit + tensor * 10_000 + whole;
  });
}

/** The steps that this rank's elements are of; -1 for one that no step has. Zeros are those of a tensor that is new. */
function stepsHeld(): number[] {
  const steps = new Set<number>();
  eachElement((data, local, whole, tensor) => {
    const value = data[local]!;
    const step = (value - tensor * 10_000 - whole) / stepUnit;
    steps.add(value === 0 ? 0 : Number.isInteger(step) ? step : -1);
  });
  return [...steps].sort((a, b) => a - b);
}

async function register({ timeoutMs, commit }: Act<"register">): Promise<void> {
  client ??= await TensorBusClient.connect({ agentRank: rank, ...paths, connectionTimeoutMs: timeoutMs });
  await client.awaitAgent({ timeoutMs });
  await handler?.close({ timeoutMs }).catch(() => {});
  handler = undefined;
  const ranks = sends ? trainers : engines;
  await client
    .initPair({
      pairName: "weights",
      localName: sends ? "trainer" : "engine",
      remoteName: sends ? "engine" : "trainer",
      expectedWorldSize: 2,
      deviceMesh: new DeviceMesh([2], { ranks }),
      placements: [sends ? "S(0)" : "S(1)"],
      timeoutMs,
    })
    .catch((error) => {
      if (error.code !== "TB_EXISTS") throw error;
    });
  handler = await client
    .registerTensors(
      "model",
      locals.map((tensor) => [tensor, "weights"] as const),
      { timeoutMs, ...(commit === undefined ? {} : { commit }) },
    )
    .catch((error) => {
      // What may still be read is of no use any more: the next attempt brings other memory.
      if (error.code === "TB_QUARANTINED") locals = allocate();
      throw error;
    });
}

function registered(): BatchHandler {
  if (handler === undefined) throw new TensorBusError("TB_BATCH_UNKNOWN", "nothing is registered");
  return handler;
}

async function call({ step, timeoutMs, unversioned }: Act<"call">): Promise<void> {
  const batch = registered();
  if (sends) fill(step);
  abort = new AbortController();
  const version = unversioned === true ? {} : { version: step };
  const semaphore = await batch.transfer(direction, { ...version, timeoutMs, signal: abort.signal });
  await semaphore.wait({ timeoutMs: timeoutMs + 60_000 });
}

async function poll(): Promise<void> {
  for (;;) {
    await registered().queryTransferSignal();
    await sleep(20);
  }
}

async function act(request: Request): Promise<void> {
  switch (request.act) {
    case "register":
      return register(request);
    case "call":
      return call(request);
    case "poll":
      return poll();
    case "close":
      return registered().close();
    case "end":
      await handler?.close({ timeoutMs: 5000 }).catch(() => {});
      await client?.close();
      process.disconnect();
  }
}

async function answer(request: Request): Promise<void> {
  const began = performance.now();
  let outcome: Pick<Outcome, "code" | "message" | "rank" | "round"> = { code: "none" };
  try {
    await act(request);
  } catch (error) {
    const { message } = error as Error;
    if (error instanceof TensorBusError) {
      const { rank, round } = error.details;
      outcome = {
        code: error.code,
        message,
        ...(typeof rank === "number" ? { rank } : {}),
        ...(typeof round === "number" ? { round } : {}),
      };
    } else {
      outcome = { code: `untyped ${(error as { code?: string }).code}`, message };
    }
  }
  const ms = performance.now() - began;
  if (process.connected)
    process.send!({ id: request.id, ...outcome, ms, steps: stepsHeld() } satisfies Outcome);
}

process.on("message", (message: Request | { abort: true }) => {
  if ("abort" in message) abort.abort();
  else void answer(message);
});
process.on("disconnect", () => setTimeout(() => process.exit(), 1000).unref());
process.send!({ ready: true });
