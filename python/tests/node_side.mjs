// One rank of a side that is a process of Node.js: ROLE sends or receives the weights NAME, and prints what it holds.
import { bootstrapClient, DeviceMesh, Replicate, SharedTensor } from "../../dist/index.js";

const { ROLE: role, NAME: name } = process.env;
const { client, agentRank } = await bootstrapClient();
const [local, remote] = role === "send" ? ["trainer", "engine"] : ["engine", "trainer"];
await client.initPair({
  pairName: name,
  localName: local,
  remoteName: remote,
  expectedWorldSize: 1,
  tensorLayouts: true,
});
const layout = { deviceMesh: new DeviceMesh([1], { ranks: [agentRank] }), placements: [Replicate()] };
const tensor = SharedTensor.allocate([2, 3], "float32");
if (role === "send") tensor.data.set([1, 2, 3, 4, 5, 6]);
const handler = await client.registerTensors(name, [[{ data: tensor, name: "weight", layout }, name]]);
const end = await handler.transfer(role);
const { round } = await end.wait();
console.log(JSON.stringify({ round, data: [...tensor.data] }));
await client.close();
