// One rank of the inference job: serves requests, and takes new weights as soon as the trainer has them.
import { setTimeout as sleep } from "node:timers/promises";
import { bootstrapClient, SharedTensor } from "tensorbus";
import { engineMesh, expectedValue, forEachElement, localPart, pairs, rounds, weights } from "./weights.js";

const { client, rank } = await bootstrapClient();

for (const [pairName, placements] of Object.entries(pairs)) {
  await client.initPair({
    pairName,
    localName: "engine",
    remoteName: "trainer",
    expectedWorldSize: engineMesh.size,
    deviceMesh: engineMesh,
    placements: placements.engine,
  });
}

// The engine computes in bfloat16: the trainer's float32 values are rounded on their way.
const shards = weights.map((weight) => {
  const part = localPart(weight, "engine", rank);
  return {
    weight,
    part,
    tensor: SharedTensor.allocate(
      part.map(([, count]) => count),
      "bfloat16",
    ),
  };
});
const batch = await client.registerTensors(
  "weights",
  shards.map(({ weight, tensor }) => [
    { data: tensor, name: weight.name, globalShape: weight.shape },
    weight.pair,
  ]),
);

for (let round = 1; round <= rounds; round++) {
  let served = 0;
  while (!(await batch.queryTransferSignal())) served += await serveOneRequest();
  await batch.transfer("recv", { blocking: true });
  checkWeights(round);
  console.log(`engine ${rank}: round ${round}, every weight as it should be, after ${served} requests`);
}
await client.close();

async function serveOneRequest() {
  await sleep(1);
  return 1;
}

function checkWeights(round) {
  for (const { weight, part, tensor } of shards) {
    const values = tensor.toFloat32();
    forEachElement(part, (at, row, column) => {
      const expected = expectedValue(weight, round, row, column);
      if (values[at] === expected) return;
      throw new Error(`round ${round}, ${weight.name}[${row}, ${column}] is ${values[at]}, not ${expected}`);
    });
  }
}
