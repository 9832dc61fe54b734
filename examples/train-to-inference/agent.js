// The agent of one rank: what `tensorbus agent` is, without its options.
import { Agent, openStore } from "tensorbus";
import { tcp } from "tensorbus/transports/tcp";

const agent = await Agent.start({
  rank: Number(process.env.AGENT_RANK),
  commandQueuePath: process.env.TENSOR_BUS_COMMAND_QUEUE_PATH,
  agentStatePath: process.env.TENSOR_BUS_STATE_PATH,
  store: (wait) => openStore(process.env.TENSOR_BUS_STORE, wait),
  transport: tcp(),
});
console.log(`agent ${agent.rank}: ready`);
process.once("SIGTERM", () => agent.close());
