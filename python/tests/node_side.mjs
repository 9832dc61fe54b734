// A side that is one process of Node.js with a client for each rank. SIDE is what test_mixed.py made: names, ranks, the tensors
// of each rank, and the versions that each rank names in each round. Prints what each rank met and held after each round.
import { DeviceMesh, defaultPaths, parsePlacement, SharedTensor, TensorBusClient } from "../../dist/index.js";

const { name, role, local, remote, agents, match, commit, ranks, rounds } = JSON.parse(process.env.SIDE);

async function join(agentRank, tensors) {
  const client = await TensorBusClient.connect({ agentRank, ...defaultPaths(agentRank) });
  const expectedWorldSize = agents.length;
  await client.initPair({
    pairName: name,
    localName: local,
    remoteName: remote,
    expectedWorldSize,
    tensorLayouts: true,
  });
  const memory = new Map();
  const registered = tensors.map(
    ({ name: tensor, sameAs, shape, globalShape, dtype, data, mesh, placements }) => {
      const shared = memory.get(sameAs) ?? SharedTensor.allocate(shape, dtype);
      memory.set(tensor, shared);
      if (sameAs === undefined) shared.data.set(data);
      const deviceMesh = new DeviceMesh([mesh.length], { ranks: mesh.map((rank) => agents[rank]) });
      const layout = { deviceMesh, placements: placements.map(parsePlacement) };
      return [{ data: shared, name: tensor, globalShape, layout }, name];
    },
  );
  const handler = await client.registerTensors(name, registered, { match, commit });
  return { client, handler, memory };
}

/** A rank with an older version than others is told which one they have, and calls again with that. */
async function take({ handler, memory }, version) {
  const stale = [];
  for (let named = version; ; ) {
    try {
      const options = { tellVersion: true, ...(named === null ? {} : { version: named }) };
      const statistics = await (await handler.transfer(role, options)).wait();
      const held = Object.fromEntries([...memory].map(([tensor, { data }]) => [tensor, [...data]]));
      return { version: Number(statistics.version ?? statistics.round), stale, held };
    } catch (error) {
      if (error.code !== "TB_STALE_VERSION") throw error;
      stale.push(named);
      named = Number(error.details.expected);
    }
  }
}

const joined = await Promise.all(ranks.map((tensors, rank) => join(agents[rank], tensors)));
const told = [];
for (const versions of rounds) {
  told.push(await Promise.all(joined.map((rank, at) => take(rank, versions[at]))));
  if (role === "send") for (const { memory } of joined) change(new Set(memory.values()));
}
console.log(JSON.stringify(told));
for (const { client } of joined) await client.close();

/** After a round, the values of a source are others. */
function change(tensors) {
  for (const { data } of tensors) for (let at = 0; at < data.length; at++) data[at] += 100;
}
