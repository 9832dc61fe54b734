/**
 * A client process for the tests of what goes by itself. Run with --expose-gc: it forgets things, has them collected, and says
 * what is left of them.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { BatchHandler } from "../../../src/bus/client/batch-handler.ts";
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import { SharedTensor } from "../../../src/bus/tensor/shared-tensor.ts";

const { queue, state, scenario }: { queue: string; state: string; scenario: string } = JSON.parse(
  process.argv.at(-1)!,
);
const tell = (message: unknown) => process.send?.(message);
const connect = () =>
  TensorBusClient.connect({ agentRank: 0, commandQueuePath: queue, agentStatePath: state });

/** Shared tensors that descriptors hold, however many each, and mappings. */
function held(): { descriptors: number; mappings: number } {
  const inodes = readdirSync("/proc/self/fd").flatMap((fd) => {
    const path = `/proc/self/fd/${fd}`;
    try {
      return isTensor(readlinkSync(path)) ? [statSync(path).ino] : [];
    } catch {
      return []; // the descriptor of this very listing
    }
  });
  const maps = readFileSync("/proc/self/maps", "utf8").split("\n");
  return { descriptors: new Set(inodes).size, mappings: maps.filter(isTensor).length };
}

function isTensor(text: string): boolean {
  return text.includes("memfd:tensorbus-tensor");
}

async function collect(): Promise<void> {
  // What was looked at in this turn of the event loop is not collected in it.
  await sleep(2);
  globalThis.gc!();
  await sleep(2);
}

/** What nothing holds goes at the first or second of these. */
async function collectInVain(): Promise<void> {
  for (let i = 0; i < 20; i++) await collect();
}

/** Buffers are freed on another thread, whenever that has its turn: only the test's own end ends this. */
async function collectUntil(done: () => boolean): Promise<void> {
  while (!done()) await collect();
}

const large = () => SharedTensor.allocate([2 ** 22], "float32");
/** What a scenario forgets stands in frames that have returned. */
const scenarios: Record<string, () => Promise<unknown>> = {
  async tensors() {
    const view = (() => large().slice(0, 5).data)();
    const kept = held();
    await collectInVain();
    const stillKept = held();
    const value = view[0];
    return { kept, stillKept, value };
  },

  async collected() {
    (() => {
      for (let i = 0; i < 3; i++) large().data[0] = 1;
    })();
    const before = held();
    await collectUntil(() => held().mappings === 0);
    return { before, after: held() };
  },

  async batch() {
    const client = await connect();
    const handler = await (async () => client.registerTensors("b", [[large(), "p"]]))();
    await collectInVain();
    const registered = held();
    const result = await (await handler.transfer("recv")).wait();
    await handler.close();
    await collectUntil(() => held().mappings === 0);
    const closed = held();
    await client.close();
    return { registered, closed, bytesReceived: result.bytesReceived };
  },

  async handler() {
    const client = await connect();
    await (async () => {
      await client.registerTensors("b", [[large(), "p"]]);
    })();
    await collectInVain();
    const signal = await client.queryTransferSignal("b");
    await client.close();
    return { signal };
  },

  async client() {
    const handler = await (async (): Promise<BatchHandler> => {
      const client = await connect();
      return client.registerTensors("b", [[large(), "p"]]);
    })();
    const clientIsGone = () => {
      try {
        void handler.client;
        return false;
      } catch {
        return true;
      }
    };
    await collectUntil(clientIsGone);
    const error = await handler.transfer("send").catch(({ code }) => code);
    await handler.close();
    return { gone: clientIsGone(), error };
  },

  async pending() {
    // The client is forgotten while a call is under way: the call ends as if it were not.
    const semaphore = await (async () => {
      const client = await connect();
      return client.transfer("slow", "send", { timeoutMs: 1000 });
    })();
    await collectUntil(() => semaphore.state !== "pending");
    return semaphore.wait().catch(({ code, message }) => ({ code, message }));
  },

  async exit() {
    const client = await connect();
    await client.registerTensors("b", [[large(), "p"]]);
    const wake = client.commandQueue.clients()[0]?.wake;
    // Nothing keeps the process: what is left open goes with it.
    return { wake };
  },
};

tell({ result: await scenarios[scenario]!() });
process.disconnect?.();
