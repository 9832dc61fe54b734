// Starts both jobs on this machine: a store, four agents, two trainers and two inference ranks, each a process of its own.
// On a cluster the launchers of the two jobs do this, each for its own ranks; only TENSOR_BUS_STORE is common to them.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { serveTcpStore } from "tensorbus";

const folder = await mkdtemp(join(tmpdir(), "train-to-inference-"));
const store = await serveTcpStore();

function start(script, agentRank, environment) {
  return spawn(process.execPath, [fileURLToPath(new URL(script, import.meta.url))], {
    stdio: "inherit",
    env: {
      ...process.env,
      TENSOR_BUS_STORE: `tcp://127.0.0.1:${store.port}`,
      TENSOR_BUS_COMMAND_QUEUE_PATH: join(folder, `rank-${agentRank}/queue`),
      TENSOR_BUS_STATE_PATH: join(folder, `rank-${agentRank}/state`),
      ...environment,
    },
  });
}

const agents = [0, 1, 2, 3].map((rank) => start("agent.js", rank, { AGENT_RANK: rank }));
// Both jobs count their ranks from 0; the engine's agents come after the trainer's.
const jobs = [
  ...[0, 1].map((rank) => start("trainer.js", rank, { RANK: rank, AGENT_RANK_OFFSET: 0 })),
  ...[0, 1].map((rank) => start("engine.js", rank + 2, { RANK: rank, AGENT_RANK_OFFSET: 2 })),
];

const failed = [];
await Promise.all(
  jobs.map(async (job) => {
    const [code] = await once(job, "exit");
    if (code === 0) return;
    failed.push(job.spawnargs.at(-1));
    // What one rank cannot do, the others wait for in vain.
    for (const other of jobs) other.kill();
  }),
);
for (const agent of agents) agent.kill("SIGTERM");
await Promise.all(agents.map((agent) => agent.exitCode ?? agent.signalCode ?? once(agent, "exit")));
await store.close();
await rm(folder, { recursive: true, force: true });

console.log(failed.length === 0 ? "all rounds verified" : `failed: ${failed.join(", ")}`);
process.exitCode = failed.length === 0 ? 0 : 1;
