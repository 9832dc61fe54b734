// One rank of the training job: trains, and hands its weights over after every step.
import { bootstrapClient, SharedTensor } from "tensorbus";
import { expectedValue, forEachElement, localPart, pairs, rounds, trainerMesh, weights } from "./weights.js";

const { client, rank } = await bootstrapClient();

for (const [pairName, placements] of Object.entries(pairs)) {
  await client.initPair({
    pairName,
    localName: "trainer",
    remoteName: "engine",
    expectedWorldSize: trainerMesh.size,
    deviceMesh: trainerMesh,
    placements: placements.trainer,
  });
}

// This rank's shards, in memory that its agent maps: what is written here is what travels.
const shards = weights.map((weight) => {
  const part = localPart(weight, "trainer", rank);
  return {
    weight,
    part,
    tensor: SharedTensor.allocate(
      part.map(([, count]) => count),
      "float32",
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
  trainOneStep(round);
  // The next step may begin to change the weights only once this one has been taken.
  const sent = await batch.transfer("send");
  const { bytesSent, seconds } = await sent.wait();
  console.log(`trainer ${rank}: round ${round}, ${bytesSent} bytes in ${(seconds * 1000).toFixed(1)} ms`);
}
await client.close();

function trainOneStep(round) {
  for (const { weight, part, tensor } of shards) {
    forEachElement(part, (at, row, column) => {
      tensor.data[at] = expectedValue(weight, round, row, column);
    });
  }
}
