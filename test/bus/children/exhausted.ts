/** Takes all descriptors of the process, gives them back one by one, and tries each time: tells how each try ended. */
import { closeSync, openSync } from "node:fs";
import { dirname, join } from "node:path";
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import { Door } from "../../../src/bus/door/door.ts";
import { memoryStores, openStore } from "../../../src/store/index.ts";
import type { ConnectedTransport } from "../../../src/transport/connected-session.ts";
import { shm } from "../../../transports/shm/index.ts";
import { tcp } from "../../../transports/tcp/index.ts";

const paths = JSON.parse(process.argv[2]!) as { commandQueuePath: string; agentStatePath: string };
const attempts: Record<string, () => Promise<unknown>> = {
  client: () => TensorBusClient.connect({ agentRank: 0, ...paths, connectionTimeoutMs: 50 }),
  store: () => openStore("tcp://127.0.0.1:1", { timeoutMs: 50 }),
  tcp: () => openAndClose(tcp()),
  shm: () => openAndClose(shm()),
  door: async () => {
    const about = { rank: 0, generation: 1n, version: "0", uids: [], sides: {}, heartbeat: "/none" };
    const door = await Door.open(
      { ...about, path: join(dirname(paths.commandQueuePath), "client.sock") },
      { run: () => undefined, onGone: () => {}, onFault: () => {} },
    );
    await door.close();
  },
};

async function openAndClose(transport: ConnectedTransport): Promise<void> {
  await (await transport.open({ rank: 0, world: 2, store: memoryStores()() })).close();
}

async function outcomeOf(attempt: () => Promise<unknown>): Promise<string> {
  try {
    await attempt();
    return "none";
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return `${code}${/ulimit -n/.test(message) ? " with the limit" : ""}`;
  }
}

// What is loaded late is loaded now.
for (const attempt of Object.values(attempts)) await outcomeOf(attempt);
const taken: number[] = [];
try {
  for (;;) taken.push(openSync("/dev/null", "r"));
} catch {
  // None is left.
}
const outcomes: Record<string, string[]> = { client: [], store: [], tcp: [], shm: [], door: [] };
for (let free = 0; free <= 40; free++) {
  for (const [name, attempt] of Object.entries(attempts)) {
    const seen = outcomes[name]!;
    const outcome = await outcomeOf(attempt);
    if (!seen.includes(outcome)) seen.push(outcome);
  }
  closeSync(taken.pop()!);
}
for (const fd of taken) closeSync(fd);
console.log(JSON.stringify(outcomes));
