/** What may happen to a cluster while a round is under way, and how it is made good again. */
import { execFile, spawnSync } from "node:child_process";
import { rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { ChaosCluster, ClusterOptions } from "./cluster.ts";
import { mountsAllowed } from "./cluster.ts";
import { ranks } from "./protocol.ts";
import type { Random } from "./random.ts";

/** What undoes it, where the cluster does not get over it by itself. */
export type Heal = () => Promise<void>;

export interface Fault {
  readonly name: string;
  readonly needs?: (options: ClusterOptions) => boolean;
  /** A rank that does not take part in the round. */
  readonly absent?: boolean;
  /** Calls may take so much longer than their deadline: what they wait for can only be waited for. */
  readonly lateMs?: number;
  /** Happens to a rank; resolves once it has. */
  readonly inject: (cluster: ChaosCluster, rank: number, random: Random) => Promise<Heal>;
}

const nothing = async () => {};
/** A transport's default of what it waits for memory to be quiet, and what tells a stopped agent from a busy one. */
const quiesceMs = 5000;
const namespacesAllowed =
  spawnSync("unshare", ["--pid", "--fork", "--time", "true"], { stdio: "ignore" }).status === 0;

async function restart(cluster: ChaosCluster, rank: number, what: "agent" | "host" | "both"): Promise<void> {
  if (what !== "host") await cluster.startAgent(rank);
  if (what !== "agent") await cluster.startHost(rank);
}

function kill(what: "agent" | "host" | "both"): Fault["inject"] {
  return async (cluster, rank) => {
    const killed = [];
    if (what !== "host") killed.push(cluster.agents[rank]!.kill());
    if (what !== "agent") killed.push(cluster.hosts[rank]!.kill());
    await Promise.all(killed);
    return () => restart(cluster, rank, what);
  };
}

/** Stopped, and after a while continued, which may be after the deadline of the round. */
function stop(what: "agents" | "hosts"): Fault["inject"] {
  return async (cluster, rank, random) => {
    const child = cluster[what][rank]!;
    child.signal("SIGSTOP");
    const continued = sleep(200 + random.below(4000)).then(() => child.signal("SIGCONT"));
    return () => continued;
  };
}

function hold(which: "peerProxies" | "storeProxies"): Fault["inject"] {
  return async (cluster, rank, random) => {
    const proxy = cluster[which][rank]!;
    proxy.hold(true);
    const released = sleep(200 + random.below(3000)).then(() => proxy.hold(false));
    return () => released;
  };
}

function restartStore(wipe: boolean): Fault["inject"] {
  return async (cluster, _, random) => {
    await cluster.killStore(wipe);
    const restarted = sleep(random.below(1500)).then(() => cluster.startStore());
    return () => restarted;
  };
}

/** Leaves no room on a rank's disk. */
function fillDisk(path: string): string[] {
  const files: string[] = [];
  for (let bytes = 1 << 20; bytes >= 4096; bytes /= 2) {
    for (let full = false; !full; ) {
      const file = join(path, `ballast-${files.length}`);
      files.push(file);
      try {
        writeFileSync(file, Buffer.alloc(bytes));
      } catch {
        full = true;
      }
    }
  }
  return files;
}

/** The agent and its host are told, end, and begin anew in an empty folder. */
function damage(harm: (file: string) => void): Fault["inject"] {
  return async (cluster, rank, random) => {
    const { commandQueuePath, agentStatePath } = cluster.paths(rank);
    const folder = random.of([commandQueuePath, agentStatePath]);
    harm(join(folder, random.of(["data.mdb", "lock.mdb"])));
    return async () => {
      for (const child of [cluster.hosts[rank]!, cluster.agents[rank]!]) {
        const ended = await child.end("SIGTERM", 20_000);
        const signal = child.process.signalCode;
        if (!ended || (signal !== null && signal !== "SIGTERM")) {
          throw new Error(`a process of rank ${rank} did not end by itself: ${child.ended}`);
        }
      }
      rmSync(folder, { recursive: true });
      await restart(cluster, rank, "both");
    };
  };
}

/** A client in another namespace is sent away, and nobody else is disturbed. */
async function intrude(cluster: ChaosCluster, rank: number, random: Random): Promise<Heal> {
  const kind = random.of([["--pid"], ["--time", "--monotonic", "10000"]]);
  const { commandQueuePath } = cluster.paths(rank);
  const script = `import("tensorbus").then(({ TensorBusClient }) =>
    TensorBusClient.connect(${JSON.stringify({ agentRank: rank, ...cluster.paths(rank), connectionTimeoutMs: 5000 })})
  ).then(() => console.log("none"), ({ code }) => console.log(code))`;
  const code = new Promise<string>((resolve) => {
    execFile("unshare", [...kind, "--fork", process.execPath, "-e", script], (_, stdout) =>
      resolve(stdout.trim()),
    );
  });
  return async () => {
    if ((await code) !== "TB_NAMESPACE") {
      throw new Error(`a client in another namespace of ${commandQueuePath} ended with "${await code}"`);
    }
  };
}

export const faults: readonly Fault[] = [
  { name: "nothing", inject: async () => nothing },
  { name: "agent killed", inject: kill("agent") },
  { name: "host killed", inject: kill("host") },
  { name: "agent and host killed", inject: kill("both") },
  {
    name: "everything killed",
    inject: async (cluster) => {
      await Promise.all([...cluster.agents, ...cluster.hosts].map((child) => child.kill()));
      return async () => {
        await Promise.all(ranks.map((rank) => restart(cluster, rank, "both")));
      };
    },
  },
  { name: "agent stopped", lateMs: quiesceMs + 2500, inject: stop("agents") },
  { name: "host stopped", lateMs: 4500, inject: stop("hosts") },
  {
    name: "connections of a rank cut",
    inject: async (cluster, rank) => {
      cluster.peerProxies[rank]!.cut();
      return nothing;
    },
  },
  { name: "connections of a rank held up", lateMs: quiesceMs, inject: hold("peerProxies") },
  {
    name: "one rank's connections to the store cut",
    inject: async (cluster, rank) => {
      cluster.storeProxies[rank]!.cut();
      return nothing;
    },
  },
  { name: "one rank's connections to the store held up", inject: hold("storeProxies") },
  { name: "store killed, and empty again", inject: restartStore(true) },
  {
    name: "etcd killed, with its data back",
    needs: ({ store }) => store === "etcd",
    inject: restartStore(false),
  },
  {
    name: "store stopped",
    inject: async (cluster, _, random) => {
      cluster.signalStore("SIGSTOP");
      const continued = sleep(200 + random.below(2500)).then(() => cluster.signalStore("SIGCONT"));
      return () => continued;
    },
  },
  {
    name: "round aborted on one rank",
    inject: async (cluster, rank) => {
      cluster.hosts[rank]!.process.send({ abort: true });
      return nothing;
    },
  },
  { name: "one rank absent", absent: true, inject: async () => nothing },
  {
    name: "disk of a rank full",
    needs: () => mountsAllowed,
    lateMs: 3000,
    inject: async (cluster, rank) => {
      const files = fillDisk(cluster.disk(rank));
      return async () => {
        for (const file of files) rmSync(file, { force: true });
      };
    },
  },
  { name: "file of a rank cut", inject: damage((file) => truncateSync(file, 100)) },
  {
    name: "file of a rank overwritten",
    inject: damage((file) => writeFileSync(file, Buffer.alloc(300_000, 0x5a))),
  },
  { name: "client of another namespace", needs: () => namespacesAllowed, inject: intrude },
];
