/** An agent process on given paths, with a store of the test's. */
import { Agent } from "../../../src/bus/agent/agent.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import { tcp } from "../../../transports/tcp/index.ts";

const { rank, storePort, commandQueuePath, agentStatePath } = JSON.parse(process.argv.at(-1)!);

const store = () => tcpStore({ host: "127.0.0.1", port: storePort });
const agent = await Agent.start({
  rank,
  world: 2,
  commandQueuePath,
  agentStatePath,
  store: async () => {
    const opened = await store();
    return { store: opened, close: () => opened.close() };
  },
  transport: tcp(),
});
process.once("SIGTERM", async () => {
  await agent.close();
  process.exit(0);
});
process.send?.("ready");
