/** The files of a live agent are damaged: its clients learn of it before their deadline, it ends when it is told to. */
import { readdirSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { TensorBusClient } from "../../src/bus/client/client.ts";
import { keyOf } from "../../src/bus/queue/environment.ts";
import { freePort } from "../kit/free-ports.ts";
import { Cluster } from "./kit/agent-cluster.ts";
import { failureOf } from "./kit/agent-kit.ts";
import { stopIdle } from "./kit/processes.ts";

const pair = { pairName: "p", localName: "a", remoteName: "b", expectedWorldSize: 1 };
const namesOf = (pid: number) =>
  readdirSync("/dev/shm").filter((name) => new RegExp(`tensorbus-\\d+-\\d+-${pid}-`).test(name));

async function start(): Promise<{ cluster: Cluster; pid: number; client: TensorBusClient }> {
  const cluster = new Cluster(await freePort());
  const agent = await cluster.start(0);
  return { cluster, pid: agent.process.pid!, client: await cluster.client(0) };
}

it.each([
  ["state", "data.mdb", (file: string) => truncateSync(file, 4096)],
  ["state", "data.mdb", (file: string) => writeFileSync(file, Buffer.alloc(65_536, 0xa5))],
  ["state", "lock.mdb", (file: string) => truncateSync(file, 0)],
  ["state", "lock.mdb", (file: string) => writeFileSync(file, Buffer.alloc(65_744, 0x5a))],
  ["queue", "data.mdb", (file: string) => truncateSync(file, 0)],
  ["queue", "lock.mdb", (file: string) => truncateSync(file, 100)],
] as const)("%s/%s of a live agent: TB_BUS_FORMAT in time, and the agent ends", async (folder, file, damage) => {
  const { cluster, pid, client } = await start();
  const waiting = failureOf(client.initPair({ ...pair, timeoutMs: 1500 }));
  await expect.poll(() => client.commandQueue.size()).toBe(0);
  const began = performance.now();
  damage(join(cluster.folder, `${folder}-0`, file));
  expect(await waiting).toMatchObject({ code: "TB_BUS_FORMAT", message: expect.stringMatching(/remove it/) });
  expect(performance.now() - began).toBeLessThan(4000);
  expect(await failureOf(client.initPair({ ...pair, timeoutMs: 1500 }))).toMatchObject({
    code: "TB_BUS_FORMAT",
  });
  const late = TensorBusClient.connect({ agentRank: 0, ...cluster.paths(0), connectionTimeoutMs: 2000 });
  expect(await failureOf(late)).toMatchObject({ code: "TB_BUS_FORMAT" });
  await client.close();
  const agent = cluster.agents[0]!;
  agent.process.kill("SIGTERM");
  const killed = setTimeout(() => agent.process.kill("SIGKILL"), 10_000);
  expect((await agent.finished).code).toBe(0);
  clearTimeout(killed);
  expect(namesOf(pid)).toEqual([]);
});

it("queue/data.mdb of a live agent, cut within a page in a client's transaction: TB_BUS_FORMAT, and the agent ends", async () => {
  const { cluster, client } = await start();
  const { environment } = client.commandQueue;
  const file = join(environment.path, "data.mdb");
  const agent = cluster.agents[0]!;
  // It may make room for what it will write at any moment, so that nothing would be missing any more.
  await stopIdle(agent.process, environment);
  const cutting = environment.write("a write", () => {
    environment.root.put(keyOf(99, 1n), Buffer.alloc(5000));
    truncateSync(file, statSync(file).size - 5000);
    environment.root.put(keyOf(99, 2n), Buffer.alloc(5000));
  });
  expect(await failureOf(cutting)).toMatchObject({
    code: "TB_BUS_FORMAT",
    message: expect.stringMatching(/remove it/),
  });
  agent.process.kill("SIGCONT");
  expect(await failureOf(client.initPair({ ...pair, timeoutMs: 1500 }))).toMatchObject({
    code: "TB_BUS_FORMAT",
  });
  await client.close();
  agent.process.kill("SIGTERM");
  expect((await agent.finished).code).toBe(0);
});

it("names in /dev/shm go with a folder that is removed, though its agent was killed", async () => {
  const { cluster, pid, client } = await start();
  await client.close();
  cluster.agents[0]!.process.kill("SIGKILL");
  await cluster.agents[0]!.finished;
  expect(namesOf(pid).length).toBeGreaterThan(0);
  const state = join(cluster.folder, "state-0");
  truncateSync(join(state, "data.mdb"), 4096);
  expect(await failureOf(cluster.client(0))).toMatchObject({ code: "TB_BUS_FORMAT" });
  rmSync(state, { recursive: true });
  expect(namesOf(pid)).toEqual([]);
  await cluster.start(0);
  await cluster.client(0);
});
