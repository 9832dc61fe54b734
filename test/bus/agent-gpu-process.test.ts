/** Agents of GPUs as processes of their own, on the doubles of libcuda and libnccl (native/test/doubles). */
import { describe, expect, test } from "vitest";
import { missingDevice } from "../doubles/cuda/index.ts";
import { freePort } from "../kit/free-ports.ts";
import { deviceOf, useDoubles } from "../transport/kit/nccl-doubles.ts";
import { Cluster } from "./kit/agent-cluster.ts";
import { failureOf, initPair } from "./kit/agent-kit.ts";
import { engine, ownedTensor, post, register, round, trainer } from "./kit/gpu-kit.ts";
import { kill } from "./kit/processes.ts";

useDoubles(3);

const ranks = [0, 1, 2];
const old = { CUDA_DOUBLE_VERSION: "10020" };

/** The double lets processes share memory of one GPU, and NCCL wants a GPU for each rank. */
const transports = [
  ["cuda-ipc", ranks.map(() => deviceOf(0))],
  ["nccl", ranks.map(deviceOf)],
] as const;

class GpuCluster extends Cluster {
  readonly #flags: (rank: number) => readonly string[];

  constructor(port: number, transport: string, devices: readonly string[]) {
    super(port);
    this.#flags = (rank) => ["--device", devices[rank]!, "--transport", transport];
  }

  override start(rank: number) {
    return super.start(rank, this.#flags(rank));
  }
}

async function startCluster(transport: string, devices: readonly string[]) {
  const cluster = new GpuCluster(await freePort(), transport, devices);
  await Promise.all(ranks.map((rank) => cluster.start(rank)));
  const clients = await Promise.all(ranks.map((rank) => cluster.client(rank)));
  await initPair([clients.slice(0, 1), clients.slice(1)], [trainer, engine]);
  return { cluster, clients, owned: await Promise.all(devices.map((device) => ownedTensor(device))) };
}

describe("agents of GPUs in processes of their own", () => {
  test.each(
    transports,
  )("move tensors of other processes by %s, and drain at SIGTERM", async (name, devices) => {
    const { cluster, clients, owned } = await startCluster(name, devices);
    const handlers = await register(clients, owned, "model");
    for (const value of [7, 200]) await round(handlers, owned, value);
    // Rank 0 serves the store.
    for (const { process, finished } of cluster.agents.reverse()) {
      process.kill("SIGTERM");
      expect((await finished).code).toBe(0);
    }
  });

  test.each(
    transports,
  )("fail by %s with memory that was freed, until they are started again", async (name, devices) => {
    const { cluster, clients, owned } = await startCluster(name, devices);
    const handlers = await register(clients, owned, "model");
    await round(handlers, owned, 3);
    await owned[1]!.owner.ask("free");
    const [sent, received] = await post(handlers);
    expect(await failureOf(received!.wait())).toMatchObject({ code: "TB_CUDA", details: { rank: 1 } });
    expect(await failureOf(sent!.wait())).toMatchObject({ code: "TB_CUDA", details: { rank: 1 } });
    await kill(cluster.agents[1]!.process);
    await cluster.start(1);
    await clients[1]!.awaitAgent();
    await Promise.all([handlers[0]!.close(), handlers[2]!.close()]);
    owned[1] = await ownedTensor(devices[1]!);
    await round(await register(clients, owned, "next"), owned, 8);
  });

  test("refuse a batch by cuda-ipc between GPUs that cannot reach each other", async () => {
    const { clients, owned } = await startCluster("cuda-ipc", ranks.map(deviceOf));
    expect(await failureOf(register(clients, owned, "model"))).toMatchObject({
      code: "TB_UNSUPPORTED",
      message: expect.stringContaining("PEER_ACCESS_UNSUPPORTED"),
    });
  });

  test.each(
    transports,
  )("by %s: others end with what their GPU or driver lacks, and these go on", async (name, devices) => {
    const { cluster, clients, owned } = await startCluster(name, devices);
    const handlers = await register(clients, owned, "model");
    const [missing, outdated] = await Promise.all([
      cluster.run(3, {}, ["--device", missingDevice, "--transport", name]).finished,
      cluster.run(4, old, ["--device", deviceOf(0), "--transport", name]).finished,
    ]);
    expect(missing).toMatchObject({ code: 3, stderr: expect.stringContaining(missingDevice) });
    expect(missing.stderr).toContain("TB_DEVICE");
    expect(outdated).toMatchObject({ code: 3, stderr: expect.stringMatching(/CUDA 10\.2.*11\.4/) });
    expect(outdated.stderr).toContain("TB_LIBRARY");
    await round(handlers, owned, 6);
  });
});
