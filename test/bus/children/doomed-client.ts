/** A client in a process of its own, that is killed in the middle of a round: it receives a vector, whole. */
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import { SharedTensor } from "../../../src/bus/tensor/shared-tensor.ts";
import { DeviceMesh, Replicate } from "../../../src/layout/index.ts";

interface DoomedOptions {
  readonly rank: number;
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
  readonly elements: number;
}

const { rank, elements, ...paths }: DoomedOptions = JSON.parse(process.argv.at(-1)!);
const client = await TensorBusClient.connect({ agentRank: rank, ...paths });
await client.initPair({
  pairName: "weights",
  localName: "inference",
  remoteName: "trainer",
  expectedWorldSize: 1,
  deviceMesh: new DeviceMesh([1], { ranks: [rank] }),
  placements: [Replicate()],
});
const tensor = SharedTensor.allocate([elements], "float32");
const handler = await client.registerTensors("model", [[tensor, "weights"]]);
await handler.transfer("recv");
process.send?.("posted");
process.on("message", () => tensor.data.fill(0));
