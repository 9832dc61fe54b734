/** A client process that registers its side of a batch, posts a round, and waits to be killed. */
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import { SharedTensor } from "../../../src/bus/tensor/shared-tensor.ts";

const { paths, rank }: { paths: { commandQueuePath: string; agentStatePath: string }; rank: number } =
  JSON.parse(process.argv.at(-1)!);

const client = await TensorBusClient.connect({ agentRank: rank, ...paths });
await client.initPair({ pairName: "w", localName: "a", remoteName: "b", expectedWorldSize: 1 });
const tensor = SharedTensor.allocate([2 ** 20], "float32");
tensor.data.fill(rank + 1);
const handler = await client.registerTensors("b", [[tensor, "w"]]);
await handler.transfer("send", { blocking: true });
process.send?.("sent");
await handler.transfer("send");
process.send?.("posted");
setInterval(() => {}, 1000);
