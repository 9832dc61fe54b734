// One process of the comparison: an agent, or the client of one, of whichever build it is told to load. It knows of that build
// what its callers know, so that any commit since the first with this client can be compared.
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { build, role, rank, storePort, ...paths } = JSON.parse(process.argv[2]);
const load = (file) => import(pathToFileURL(join(build, "dist", file)).href);
const { Agent, DeviceMesh, parsePlacement, SharedTensor, TensorBusClient, tcpStore } = await load("index.js");
const sides = ["source", "target"];
const direction = ["send", "recv"][rank];
const answers = {};

async function serveAgent() {
  const { tcp } = await load("transports/tcp.js");
  const store = await tcpStore({ host: "127.0.0.1", port: storePort });
  await Agent.start({ rank, world: 2, ...paths, store, transport: tcp() });
}

async function serveClient() {
  const client = await TensorBusClient.connect({ agentRank: rank, ...paths });
  await client.initPair({
    pairName: "weights",
    localName: sides[rank],
    remoteName: sides[1 - rank],
    expectedWorldSize: 1,
    deviceMesh: new DeviceMesh([1], { ranks: [rank] }),
    placements: [parsePlacement("S(0)")],
  });
  const batches = new Map();
  answers.allocate = async ({ batch, tensors, rows, columns }) => {
    const list = Array.from({ length: tensors }, () => SharedTensor.allocate([rows, columns], "float32"));
    for (const { data } of list) data.fill(-1);
    batches.set(batch, { list });
  };
  answers.register = async ({ batch }) => {
    const made = batches.get(batch);
    const pairs = made.list.map((tensor) => [tensor, "weights"]);
    return timed(async () => {
      made.handler = await client.registerTensors(batch, pairs, { timeoutMs: 60_000 });
    });
  };
  answers.drop = async ({ batch }) => {
    await batches.get(batch).handler.close();
    batches.delete(batch);
  };
  answers.round = async ({ batch, value }) => {
    const { list, handler } = batches.get(batch);
    if (rank === 0) for (const { data } of list) data.fill(value);
    const times = await timed(() => handler.transfer(direction, { blocking: true }));
    if (rank === 1 && !list.every(({ data }) => data[0] === value && data.at(-1) === value)) {
      throw new Error(`a round of ${batch} did not bring ${value}`);
    }
    return times;
  };
  answers.questions = async ({ batch, milliseconds }) => {
    const times = [];
    for (const end = performance.now() + milliseconds; performance.now() < end; ) {
      const began = process.hrtime.bigint();
      await client.queryTransferSignal(batch);
      times.push(Number(process.hrtime.bigint() - began) / 1000);
    }
    return times;
  };
}

async function timed(run) {
  const startedNs = process.hrtime.bigint();
  await run();
  return { startedNs, endedNs: process.hrtime.bigint() };
}

await { agent: serveAgent, client: serveClient }[role]();
process.on("message", ({ act, ...command }) => {
  answers[act](command).then(
    (answer) => process.send(answer ?? {}),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.on("disconnect", () => process.exit());
process.send("ready");
