/** Agents as processes of their own, by the bundled command line; they end with their test. */
import { join } from "node:path";
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import { BundledCli, type RunningCommand } from "../../cli/kit/bundled-cli.ts";
import { afterEachTest } from "../../kit/endings.ts";
import { temporaryFolder } from "./processes.ts";

const cli = await BundledCli.build();

const cleanUps: (() => Promise<unknown> | unknown)[] = [];
afterEachTest(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** What a process has in its environment besides this one's. */
type Variables = Readonly<Record<string, string>>;

export class Cluster {
  readonly folder: string;
  readonly agents: RunningCommand[] = [];
  readonly #port: number;

  constructor(port: number, folder = temporaryFolder()) {
    this.#port = port;
    this.folder = folder;
  }

  paths(rank: number) {
    return {
      commandQueuePath: join(this.folder, `queue-${rank}`),
      agentStatePath: join(this.folder, `state-${rank}`),
    };
  }

  /** Runs an agent on the paths of a rank. */
  run(rank: number, variables: Variables = {}, more: readonly string[] = []): RunningCommand {
    const { commandQueuePath, agentStatePath } = this.paths(rank);
    const running = cli.start(
      ["agent", "--queue", commandQueuePath, "--state", agentStatePath, "--log", "error", ...more],
      {
        RANK: String(rank),
        TENSOR_BUS_STORE: `tcp://127.0.0.1:${this.#port}`,
        TENSOR_BUS_SECRET: "a secret of enough bytes",
        ...variables,
      },
    );
    cleanUps.push(() => running.process.kill("SIGKILL"));
    return running;
  }

  /** Starts an agent, and waits until it says that it is ready. */
  async start(rank: number, more: readonly string[] = []): Promise<RunningCommand> {
    const running = this.run(rank, {}, more);
    this.agents[rank] = running;
    await running.printed("ready: rank");
    return running;
  }

  async client(rank: number): Promise<TensorBusClient> {
    const client = await TensorBusClient.connect({
      agentRank: rank,
      ...this.paths(rank),
      connectionTimeoutMs: 10_000,
    });
    cleanUps.push(() => client.close());
    return client;
  }
}
