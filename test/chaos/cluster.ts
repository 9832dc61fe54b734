/** One cluster of real processes: a store, agents and the hosts of their ranks, with a proxy before each that listens. */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { freePort } from "../kit/free-ports.ts";
import { type Act, ask, Child, type Programs, startAgent, startForked } from "./children.ts";
import { type Outcome, type Sides, usualSides } from "./protocol.ts";
import { CuttingProxy } from "./proxy.ts";
import type { HostOptions } from "./rank.ts";

/** `ucx` moves by its own TCP unless UCX_TLS says otherwise: these clusters have one host. */
export const clusterTransports = ["tcp", "shm", "ucx"] as const;
export type ClusterTransport = (typeof clusterTransports)[number];

export interface ClusterOptions {
  readonly transport: ClusterTransport;
  readonly store: "tcp" | "etcd";
  readonly commit: "direct" | "staged";
  readonly sides?: Sides;
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
  #sides: Sides;
  readonly #programs: Programs;
  readonly #folder = mkdtempSync(join(tmpdir(), "tensorbus-chaos-"));
  readonly #mounted: string[] = [];
  #store: Child | undefined;
  #storePort = 0;
  readonly #agentPorts: number[] = [];
  /** All processes that it has started, also those that were never ready. */
  readonly #children: Child[] = [];
  #hasEnded = false;

  private constructor(programs: Programs, options: ClusterOptions) {
    this.#programs = programs;
    this.options = options;
    this.#sides = options.sides ?? usualSides;
  }

  static async start(programs: Programs, options: ClusterOptions): Promise<ChaosCluster> {
    const cluster = new ChaosCluster(programs, options);
    try {
      await cluster.#start();
    } catch (error) {
      await cluster.kill();
      throw error;
    }
    return cluster;
  }

  get sides(): Sides {
    return this.#sides;
  }

  get ranks(): readonly number[] {
    return [...this.#sides.trainers, ...this.#sides.engines];
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
        UCX_TLS: "tcp,self",
        ...process.env,
        TENSOR_BUS_SECRET: "a secret of enough bytes for chaos",
        TENSOR_BUS_STORE: `${this.options.store}://127.0.0.1:${this.storeProxies[rank]!.port}`,
      },
      this.#spawned,
    );
    this.agents[rank] = agent;
  }

  async startHost(rank: number): Promise<void> {
    const options: HostOptions = { rank, sides: this.#sides, ...this.paths(rank) };
    this.hosts[rank] = await startForked(this.#programs.rank, [JSON.stringify(options)], this.#spawned);
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
        ? await startForked(this.#programs.store, [String(this.#storePort)], this.#spawned)
        : this.#spawnEtcd();
    await this.#reachable(this.#storePort);
  }

  /** Agent and host of a rank end without a word. */
  async killRank(rank: number): Promise<void> {
    await Promise.all([this.agents[rank]?.kill(), this.hosts[rank]?.kill()]);
  }

  async startRank(rank: number): Promise<void> {
    await this.startAgent(rank);
    await this.startHost(rank);
  }

  /** Everything but the store is killed, and the job is launched again, maybe with other ranks. */
  async relaunch(sides: Sides): Promise<void> {
    await Promise.all(this.ranks.map((rank) => this.killRank(rank)));
    this.#sides = sides;
    for (const rank of this.ranks) await this.#prepareRank(rank);
    await Promise.all(this.ranks.map((rank) => this.startRank(rank)));
  }

  /** How it ended on each rank, in their order. */
  askAll(act: Act, ranks = this.ranks): Promise<Outcome[]> {
    return Promise.all(ranks.map((rank) => ask(this.hosts[rank]!, act)));
  }

  registerAll(timeoutMs: number): Promise<Outcome[]> {
    return this.askAll({ act: "register", timeoutMs });
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
    await this.kill();
    return [...left, ...this.namesLeft().map((name) => `/dev/shm/${name} is left`)];
  }

  /** Ends whatever it has started, and what is still being started. */
  async kill(): Promise<void> {
    this.#hasEnded = true;
    await Promise.all(this.#children.map((child) => child.kill()));
    await Promise.all([...this.peerProxies, ...this.storeProxies].map((proxy) => proxy?.close()));
    for (const path of this.#mounted.splice(0)) execFileSync("umount", ["--lazy", path]);
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Names in /dev/shm of processes of this cluster. */
  namesLeft(): string[] {
    const pids = new Set(this.pids.map(String));
    return readdirSync("/dev/shm").filter((name) => {
      const pid = /^(?:sem\.)?tensorbus-\d+-\d+-(\d+)-/.exec(name)?.[1];
      return pid !== undefined && pids.has(pid);
    });
  }

  readonly #spawned = (child: Child): void => {
    this.#children.push(child);
    if (this.#hasEnded) child.signal("SIGKILL");
    else this.pids.push(child.pid);
  };

  async #start(): Promise<void> {
    this.#storePort = await freePort();
    await this.startStore();
    for (const rank of this.ranks) await this.#prepareRank(rank);
    await Promise.all(this.ranks.map((rank) => this.startRank(rank)));
  }

  /** Its folder, its port and what stands before it and its way to the store, if it had none yet. */
  async #prepareRank(rank: number): Promise<void> {
    if (this.peerProxies[rank] !== undefined) return;
    this.#makeDisk(rank);
    const [peer, store] = [await CuttingProxy.open(), await CuttingProxy.open()];
    this.#agentPorts[rank] = await freePort();
    peer.leadTo(this.#agentPorts[rank]);
    store.leadTo(this.#storePort);
    this.peerProxies[rank] = peer;
    this.storeProxies[rank] = store;
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
    const etcd = new Child(
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
    this.#spawned(etcd);
    return etcd;
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
