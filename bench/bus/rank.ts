/**
 * The processes of the bus's benchmark: an agent, a client of one, and a rank of the transport alone. All memory of tensors
 * is shared memory, and both ways run the same plan.
 */
import { Agent } from "../../src/bus/agent/agent.ts";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import { TensorBusClient } from "../../src/bus/client/client.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { createExecutor, type Execution } from "../../src/exec/executor.ts";
import { DeviceMesh, Shard } from "../../src/layout/index.ts";
import type { Memory } from "../../src/memory/memory.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { tcp } from "../../transports/tcp/index.ts";

export interface RankOptions {
  readonly role: "agent" | "client" | "bare";
  readonly rank: number;
  readonly storePort: number;
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
}

export type RankCommand =
  | { readonly kind: "query"; readonly pauseMs: number; readonly seconds: number }
  | {
      readonly kind: "register";
      readonly batch: string;
      readonly tensors: number;
      readonly rows: number;
      readonly columns: number;
    }
  | { readonly kind: "round"; readonly fill: number };

type Register = Extract<RankCommand, { kind: "register" }>;

const options: RankOptions = JSON.parse(process.argv.at(-1)!);
const { role, rank, storePort, commandQueuePath, agentStatePath } = options;
const sides = ["source", "target"] as const;
const meshes = sides.map((_, side) => new DeviceMesh([1], { ranks: [side] }));
const store = () => tcpStore({ host: "127.0.0.1", port: storePort, namespace: role });
const answers: Record<string, (command: never) => Promise<unknown>> = {};

async function serveAgent(): Promise<void> {
  const paths = { commandQueuePath, agentStatePath };
  await Agent.start({ rank, world: 2, ...paths, store: await store(), transport: tcp() });
}

let tensors: SharedTensor<"float32">[] = [];
function allocate({ tensors: count, rows, columns }: Register): void {
  tensors = Array.from({ length: count }, () => SharedTensor.allocate([rows, columns], "float32"));
  for (const { data } of tensors) data.fill(-1);
}

/** What the source sends, and the target must have got, outside of what is timed. */
function fillOrCheck(value: number, done: boolean): void {
  for (const { data } of tensors) {
    if (rank === 0 && !done) data.fill(value);
    if (rank === 1 && done && !(data[0] === value && data.at(-1) === value)) {
      throw new Error(`${data[0]} and ${data.at(-1)} came, not ${value}`);
    }
  }
}

async function timed(run: () => Promise<unknown>): Promise<{ startedNs: bigint; endedNs: bigint }> {
  const startedNs = process.hrtime.bigint();
  await run();
  return { startedNs, endedNs: process.hrtime.bigint() };
}

async function serveClient(): Promise<void> {
  const client = await TensorBusClient.connect({ agentRank: rank, commandQueuePath, agentStatePath });
  let handler: BatchHandler;
  answers["query"] = async ({ pauseMs, seconds }: Extract<RankCommand, { kind: "query" }>) => {
    const times: number[] = [];
    const end = performance.now() + seconds * 1000;
    while (performance.now() < end) {
      if (pauseMs > 0) await new Promise((resolve) => setTimeout(resolve, pauseMs));
      const start = process.hrtime.bigint();
      await client.queryTransferSignal("bench");
      times.push(Number(process.hrtime.bigint() - start) / 1000);
    }
    return times;
  };
  await client.initPair({
    pairName: "weights",
    localName: sides[rank]!,
    remoteName: sides[1 - rank]!,
    expectedWorldSize: 1,
    deviceMesh: meshes[rank]!,
    placements: [Shard(0)],
  });
  answers["register"] = async (command: Register) => {
    allocate(command);
    return timed(async () => {
      handler = await client.registerTensors(
        command.batch,
        tensors.map((tensor) => [tensor, "weights"]),
        { timeoutMs: 60_000 },
      );
    });
  };
  answers["round"] = async ({ fill }: Extract<RankCommand, { kind: "round" }>) => {
    fillOrCheck(fill, false);
    const times = await timed(() => handler.transfer(rank === 0 ? "send" : "recv", { blocking: true }));
    fillOrCheck(fill, true);
    return times;
  };
}

async function serveBare(): Promise<void> {
  const session = await tcp().open({ rank, world: 2, store: await store() });
  let execution: Execution;
  const registered = new Set<Memory>();
  answers["register"] = async (command: Register) => {
    allocate(command);
    return timed(async () => {
      const [source, target] = meshes.map((mesh) => ({ mesh, placements: [Shard(0)] }));
      const plan = await planTransfer({
        pairs: { weights: { source: source!, target: target! } },
        tensors: tensors.map(({ shape }, i) => ({ name: `${i}`, pair: "weights", shape, dtype: "float32" })),
      });
      const places = tensors.map(({ storage: { memory }, storageOffset }, i) => {
        if (!registered.has(memory)) session.register(memory);
        registered.add(memory);
        const place = { memory, offset: BigInt(storageOffset) };
        return [i, rank === 0 ? { source: place } : { target: place }] as const;
      });
      const prepare = { key: command.batch, tensors: new Map(places), timeoutMs: 60_000 };
      execution = await createExecutor(session).prepare(plan, prepare);
    });
  };
  answers["round"] = async ({ fill }: Extract<RankCommand, { kind: "round" }>) => {
    fillOrCheck(fill, false);
    const times = await timed(() => execution.run());
    fillOrCheck(fill, true);
    return times;
  };
}

await { agent: serveAgent, client: serveClient, bare: serveBare }[role]();
process.on("message", (command: RankCommand) => {
  answers[command.kind]!(command as never).then(
    (answer) => process.send!(answer as object),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.on("disconnect", () => process.exit());
process.send!("ready");
