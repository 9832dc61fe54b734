// An orchestrator: one Node.js process that plans a transfer, refuses it if it is over budget, and then runs it.
// Both sides' ranks live in this process here, each with an embedded agent, so that the example needs nothing else.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Agent, DeviceMesh, memoryStores, planTransfer, Replicate, Shard, TensorBusClient } from "tensorbus";
import { memory } from "tensorbus/transports/memory";

// The trainer shards its weights over ranks 0 and 1; the engine wants them by columns over ranks 2 and 3.
const trainer = new DeviceMesh([2], { ranks: [0, 1] });
const engine = new DeviceMesh([2], { ranks: [2, 3] });
const pairs = {
  matrices: { trainer: [Shard(0)], engine: [Shard(1)] },
  norms: { trainer: [Shard(0)], engine: [Replicate()] },
};
const weights = [
  { name: "layer.0.up", pair: "matrices", shape: [512, 256] },
  { name: "layer.0.down", pair: "matrices", shape: [256, 512] },
  { name: "layer.0.norm", pair: "norms", shape: [512] },
];

// 1. Dry run: the whole plan, proved right, without a byte of memory or network.
const plan = await planTransfer({
  pairs: Object.fromEntries(
    Object.entries(pairs).map(([pair, placements]) => [
      pair,
      {
        source: { mesh: trainer, placements: placements.trainer },
        target: { mesh: engine, placements: placements.engine },
      },
    ]),
  ),
  tensors: weights.map((weight) => ({ ...weight, dtype: "float32" })),
});
plan.verify();

// 2. Budget: what each rank may send, and take for staging.
const budget = { sentBytes: 2n ** 20n, stagingBytes: 64n * 2n ** 20n };
for (const { rank, sent, stagingBytes } of plan.stats().ranks) {
  console.log(`rank ${rank}: sends ${sent} bytes, stages at most ${stagingBytes}`);
  if (sent > budget.sentBytes) throw new Error(`rank ${rank} would send ${sent} bytes, over the budget`);
  if (stagingBytes > budget.stagingBytes) throw new Error(`rank ${rank} would stage ${stagingBytes} bytes`);
}

// 3. Run it: an agent and a client for each rank. Elsewhere each rank is a process, or a machine, of its own.
const folder = await mkdtemp(join(tmpdir(), "orchestrator-"));
const stores = memoryStores();
const transport = memory();
const ranks = [];
for (const rank of [0, 1, 2, 3]) {
  const paths = {
    commandQueuePath: join(folder, `rank-${rank}/queue`),
    agentStatePath: join(folder, `rank-${rank}/state`),
  };
  const agent = await Agent.start({ rank, world: 4, ...paths, store: stores(), transport });
  const client = await TensorBusClient.connect({ agentRank: rank, ...paths });
  ranks.push({ rank, agent, client });
}

try {
  const [trainerRanks, engineRanks] = [ranks.slice(0, 2), ranks.slice(2)];
  await Promise.all(
    Object.entries(pairs).flatMap(([pairName, placements]) => [
      ...trainerRanks.map(({ client }) =>
        client.initPair({
          pairName,
          localName: "trainer",
          remoteName: "engine",
          expectedWorldSize: 2,
          deviceMesh: trainer,
          placements: placements.trainer,
        }),
      ),
      ...engineRanks.map(({ client }) =>
        client.initPair({
          pairName,
          localName: "engine",
          remoteName: "trainer",
          expectedWorldSize: 2,
          deviceMesh: engine,
          placements: placements.engine,
        }),
      ),
    ]),
  );

  // An embedded agent takes plain typed arrays; one of another process takes SharedTensor.allocate(shape, dtype).
  const locals = ranks.map(({ rank }) => weights.map((weight) => localOf(weight, rank)));
  const handlers = await Promise.all(
    ranks.map(({ client }, index) =>
      client.registerTensors(
        "step",
        weights.map(({ name, pair, shape }, i) => [{ name, globalShape: shape, ...locals[index][i] }, pair]),
      ),
    ),
  );

  // What the agents are about to run is what was looked at above.
  for (const { plans } of handlers.slice(0, 2)) {
    if (plans.send.digest !== plan.digest) throw new Error(`the agents plan ${plans.send.digest}`);
  }

  for (const weight of weights) fill(weight);
  const transfers = await Promise.all([
    ...handlers.slice(0, 2).map((handler) => handler.transfer("send")),
    ...handlers.slice(2).map((handler) => handler.transfer("recv")),
  ]);
  const reports = await Promise.all(transfers.map((transfer) => transfer.wait()));
  for (const weight of weights) check(weight);

  const moved = reports.reduce((sum, { bytesReceived }) => sum + bytesReceived, 0n);
  console.log(`moved ${moved} bytes in round ${reports[0].round}, every value as it should be`);

  /** Rows of the trainer's local tensor are a part of the weight's rows; columns of the engine's a part of its columns. */
  function localOf({ pair, shape }, rank) {
    const local = [...shape];
    if (rank < 2) local[0] /= 2;
    else if (pair === "matrices") local[1] /= 2;
    return { data: new Float32Array(local.reduce((a, b) => a * b)), shape: local };
  }

  function fill(weight) {
    const i = weights.indexOf(weight);
    for (const rank of [0, 1]) {
      const { data } = locals[rank][i];
      for (let at = 0; at < data.length; at++) data[at] = rank * data.length + at;
    }
  }

  function check(weight) {
    const i = weights.indexOf(weight);
    const [, columns = 1] = weight.shape;
    for (const rank of [2, 3]) {
      const { data, shape } = locals[rank][i];
      const [, width = 1] = shape;
      const first = weight.pair === "matrices" ? (rank - 2) * width : 0;
      for (let at = 0; at < data.length; at++) {
        const expected = Math.floor(at / width) * columns + first + (at % width);
        if (data[at] !== expected)
          throw new Error(`${weight.name} on rank ${rank}: ${data[at]}, not ${expected}`);
      }
    }
  }
} finally {
  await Promise.all(ranks.map(({ client }) => client.close()));
  await Promise.all(ranks.map(({ agent }) => agent.close()));
  await rm(folder, { recursive: true, force: true });
}
