/** One cluster of the chaos runner: a store, four agents and the hosts of their ranks, with a proxy before each that listens. */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { freePorts } from "../kit/free-ports.ts";
import { ask, Child, type Programs, startAgent, startForked } from "./children.ts";
import { type Outcome, ranks } from "./protocol.ts";
import { CuttingProxy } from "./proxy.ts";

export interface ClusterOptions {
  readonly transport: "tcp" | "shm";
  readonly store: "tcp" | "etcd";
  readonly commit: "direct" | "staged";
}

/** Whether a tmpfs may be mounted here: then each rank has a disk of its own, which can be full. */
export const mountsAllowed =
  spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], { stdio: "ignore" }).status ===
  0;
const diskKib = 6144;

export class ChaosCluster {
  readonly options: ClusterOptions;
  readonly agents: Child[] = [];
  readonly hosts: Child[] = [];
  readonly peerProxies: CuttingProxy[] = [];
  readonly storeProxies: CuttingProxy[] = [];
  /** Of all processes that there were. */
  readonly pids: number[] = [];
  readonly #programs: Programs;
  readonly #folder = mkdtempSync(join(tmpdir(), "tensorbus-chaos-"));
  readonly #mounted: string[] = [];
  #store: Child | undefined;
  #storePort = 0;
  #agentPorts: number[] = [];

  private constructor(programs: Programs, options: ClusterOptions) {
    this.#programs = programs;
    this.options = options;
  }

  static async start(programs: Programs, options: ClusterOptions): Promise<ChaosCluster> {
    const cluster = new ChaosCluster(programs, options);
    try {
      await cluster.#start();
    } catch (error) {
      await cluster.end();
      throw error;
    }
    return cluster;
  }

  /** Where the folders of a rank stand. */
  disk(rank: number): string {
    return join(this.#folder, `rank-${rank}`);
  }

  paths(rank: number): { readonly commandQueuePath: string; readonly agentStatePath: string } {
    return {
      commandQueuePath: join(this.disk(rank), "queue"),
      agentStatePath: join(this.disk(rank), "state"),
    };
  }

  async startAgent(rank: number): Promise<void> {
    const { commandQueuePath, agentStatePath } = this.paths(rank);
    const { transport, commit } = this.options;
    const agent = await startAgent(
      this.#programs,
      [
        ...["--rank", String(rank), "--no-serve", "--queue", commandQueuePath, "--state", agentStatePath],
        ...["--transport", transport, "--commit", commit, "--log", "error", "--drain", "1"],
        ...(transport === "tcp" ? ["--checksum"] : []),
        ...[
          "--port",
          String(this.#agentPorts[rank]),
          "--advertise",
          `127.0.0.1:${this.peerProxies[rank]!.port}`,
        ],
      ],
      {
        ...process.env,
        TENSOR_BUS_SECRET: "a secret of enough bytes for chaos",
        TENSOR_BUS_STORE: `${this.options.store}://127.0.0.1:${this.storeProxies[rank]!.port}`,
      },
    );
    this.agents[rank] = agent;
    this.pids.push(agent.pid);
  }

  async startHost(rank: number): Promise<void> {
    const host = await startForked(this.#programs.rank, [JSON.stringify({ rank, ...this.paths(rank) })]);
    this.hosts[rank] = host;
    this.pids.push(host.pid);
  }

  /** Kills the store; what it held is gone for a TCPStore, and for etcd where it is wiped. */
  async killStore(wipe: boolean): Promise<void> {
    await this.#store?.kill();
    if (wipe) rmSync(join(this.#folder, "etcd"), { recursive: true, force: true });
  }

  signalStore(signal: NodeJS.Signals): void {
    this.#store?.signal(signal);
  }

  async startStore(): Promise<void> {
    this.#store =
      this.options.store === "tcp"
        ? await startForked(this.#programs.store, [String(this.#storePort)])
        : this.#spawnEtcd();
    await this.#reachable(this.#storePort);
    this.pids.push(this.#store.pid);
  }

  /** All ranks but these register anew; how each ended. */
  registerAll(timeoutMs: number): Promise<Outcome[]> {
    return Promise.all(ranks.map((rank) => ask(this.hosts[rank]!, { act: "register", timeoutMs })));
  }

  callAll(step: number, timeoutMs: number, absent?: number): Promise<Outcome | undefined>[] {
    return ranks.map(async (rank) =>
      rank === absent ? undefined : ask(this.hosts[rank]!, { act: "call", step, timeoutMs }),
    );
  }

  /** Ends everything in good order; what did not, or was left behind. */
  async end(): Promise<string[]> {
    const left: string[] = [];
    await Promise.all(
      this.hosts.map(async (host, rank) => {
        if (!host.isRunning) return;
        const ended = await Promise.race([ask(host, { act: "end" }), sleep(15_000, undefined)]);
        if (ended === undefined) left.push(`host ${rank} did not close`);
        if (!(await host.end("SIGTERM", 5000))) left.push(`host ${rank} did not end`);
      }),
    );
    await Promise.all(
      this.agents.map(async (agent, rank) => {
        if (!agent.isRunning) return;
        if (!(await agent.end("SIGTERM", 20_000))) left.push(`agent ${rank} did not end: ${agent.output}`);
        else if (agent.ended !== "0") left.push(`agent ${rank} ended with ${agent.ended}: ${agent.output}`);
      }),
    );
    await this.#store?.kill();
    await Promise.all([...this.peerProxies, ...this.storeProxies].map((proxy) => proxy.close()));
    for (const path of this.#mounted) execFileSync("umount", ["--lazy", path]);
    rmSync(this.#folder, { recursive: true, force: true });
    return [...left, ...this.namesLeft().map((name) => `/dev/shm/${name} is left`)];
  }

  /** Names in /dev/shm of processes of this cluster. */
  namesLeft(): string[] {
    const pids = new Set(this.pids.map(String));
    return readdirSync("/dev/shm").filter((name) => {
      const pid = /^(?:sem\.)?tensorbus-\d+-\d+-(\d+)-/.exec(name)?.[1];
      return pid !== undefined && pids.has(pid);
    });
  }

  async #start(): Promise<void> {
    const [storePort, ...agentPorts] = await freePorts(1 + ranks.length);
    this.#storePort = storePort!;
    this.#agentPorts = agentPorts;
    await this.startStore();
    for (const rank of ranks) {
      this.#makeDisk(rank);
      const [peer, store] = [await CuttingProxy.open(), await CuttingProxy.open()];
      peer.leadTo(agentPorts[rank]!);
      store.leadTo(this.#storePort);
      this.peerProxies.push(peer);
      this.storeProxies.push(store);
    }
    await Promise.all(ranks.map((rank) => this.startAgent(rank)));
    await Promise.all(ranks.map((rank) => this.startHost(rank)));
  }

  #makeDisk(rank: number): void {
    const path = this.disk(rank);
    mkdirSync(path, { mode: 0o700 });
    if (!mountsAllowed) return;
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${diskKib}k,mode=700`, "tmpfs", path]);
    this.#mounted.push(path);
  }

  #spawnEtcd(): Child {
    const client = `http://127.0.0.1:${this.#storePort}`;
    return new Child(
      spawn(
        "etcd",
        [
          ...["--name", "chaos", "--data-dir", join(this.#folder, "etcd"), "--log-level", "error"],
          ...["--listen-client-urls", client, "--advertise-client-urls", client],
          ...["--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync"],
        ],
        { stdio: ["ignore", "ignore", "pipe"] },
      ),
    );
  }

  async #reachable(port: number): Promise<void> {
    for (let tries = 0; tries < 500; tries++) {
      const socket = connect(port, "127.0.0.1");
      const reached = await new Promise<boolean>((resolve) => {
        socket.once("connect", () => resolve(true));
        socket.once("error", () => resolve(false));
      });
      socket.destroy();
      if (reached) return;
      await sleep(20);
    }
    throw new Error(`the store does not listen on port ${port}: ${this.#store?.output}`);
  }
}
