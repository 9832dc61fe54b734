/** What may happen to a cluster while a round is under way, and how it is made good again. */
import { execFile, spawnSync } from "node:child_process";
import { rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Random } from "../kit/random.ts";
import { ask } from "./children.ts";
import type { ChaosCluster, ClusterOptions } from "./cluster.ts";
import { mountsAllowed } from "./cluster.ts";
import type { Direction, Lie } from "./proxy.ts";

/** What undoes it, where the cluster does not get over it by itself. */
type Heal = () => Promise<void>;

export interface Fault {
  readonly name: string;
  readonly needs?: (options: ClusterOptions) => boolean;
  /** Whether it may as well happen while all ranks register. */
  readonly whileRegistering?: boolean;
  /** A rank that does not take part in the round. */
  readonly absent?: boolean;
  /** Who fails because of it names the rank that it happens to. */
  readonly isBlamed?: boolean;
  /** Everybody hears of it, long before a deadline. */
  readonly isHeard?: boolean;
  /** What ranks count in the store may be forged: nothing signs a counter. */
  readonly forges?: boolean;
  /** Bytes of tensors may change on their way. */
  readonly corrupts?: boolean;
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

type Part = "agent" | "host" | "both";

async function restart(cluster: ChaosCluster, rank: number, what: Part): Promise<void> {
  if (what !== "host") await cluster.startAgent(rank);
  if (what !== "agent") await cluster.startHost(rank);
}

function kill(cluster: ChaosCluster, rank: number, what: Part): Promise<unknown> {
  const parts = what === "both" ? (["agents", "hosts"] as const) : ([`${what}s`] as const);
  return Promise.all(parts.map((part) => cluster[part][rank]!.kill()));
}

function killed(what: Part): Fault["inject"] {
  return async (cluster, rank) => {
    await kill(cluster, rank, what);
    return () => restart(cluster, rank, what);
  };
}

/** Killed when it has said that it has its part of a staged round: nobody may split what is decided then. */
function killedAtItsVote(what: Part): Fault["inject"] {
  return async (cluster, rank) => {
    await votes(cluster, rank);
    await kill(cluster, rank, what);
    return () => restart(cluster, rank, what);
  };
}

/** Resolves when a rank's vote is on its way, or the round has had its time. */
function votes(cluster: ChaosCluster, rank: number): Promise<unknown> {
  return Promise.race([cluster.storeProxies[rank]!.passed(/\/votes/), sleep(2000)]);
}

/** Each of them stopped, and after a while continued, which may be after the deadline of the round. */
function stopped(what: Part, atLeastMs: number, rangeMs: number): Fault["inject"] {
  return async (cluster, rank, random) => {
    const children = [
      ...(what === "host" ? [] : [cluster.agents[rank]!]),
      ...(what === "agent" ? [] : [cluster.hosts[rank]!]),
    ];
    for (const child of children) child.signal("SIGSTOP");
    const continued = sleep(atLeastMs + random.below(rangeMs)).then(() => {
      for (const child of children) child.signal("SIGCONT");
    });
    return () => continued;
  };
}

type Which = "peerProxies" | "storeProxies";

/** Does something to proxies for a while. */
function forAWhile(change: (cluster: ChaosCluster, rank: number, on: boolean) => void): Fault["inject"] {
  return async (cluster, rank, random) => {
    change(cluster, rank, true);
    const over = sleep(200 + random.below(3000)).then(() => change(cluster, rank, false));
    return () => over;
  };
}

const held = (which: Which, ...directions: readonly Direction[]) =>
  forAWhile((cluster, rank, on) =>
    cluster[which][rank]!.hold(on, directions.length === 0 ? undefined : directions),
  );
const refused = (which: Which) => forAWhile((cluster, rank, on) => cluster[which][rank]!.refuse(on));

function cut(which: Which): Fault["inject"] {
  return async (cluster, rank) => {
    cluster[which][rank]!.cut();
    return nothing;
  };
}

/** One of so many pieces that pass is told otherwise. */
const liesIn = 4;
const lies: Readonly<Record<string, (random: Random) => Lie>> = {
  "flip bits": (random) => (bytes) => {
    const flipped = Buffer.from(bytes);
    flipped[random.below(bytes.length)]! ^= 1 << random.below(8);
    return [flipped];
  },
  "replay what was sent": () => (bytes, before) => (before === undefined ? [bytes] : [bytes, before]),
  "answer garbage": (random) => (bytes) => [
    Buffer.from(Array.from({ length: 1 + random.below(bytes.length) }, () => random.below(256))),
  ],
};

function lying(which: Which, make: (random: Random) => Lie): Fault["inject"] {
  return async (cluster, rank, random) => {
    const lie = make(random);
    const proxy = cluster[which][rank]!;
    proxy.lie((bytes, before) => (random.below(liesIn) === 0 ? lie(bytes, before) : [bytes]));
    const over = sleep(200 + random.below(3000)).then(() => proxy.lie(undefined));
    return () => over;
  };
}

/** Every exchange with the store takes that much longer, in the calls that follow too. */
async function slowStore(cluster: ChaosCluster, _: number, random: Random): Promise<Heal> {
  const delayMs = random.pick([4, 20, 75]);
  for (const rank of cluster.ranks) cluster.storeProxies[rank]!.delay(delayMs);
  return async () => {
    for (const rank of cluster.ranks) cluster.storeProxies[rank]!.delay(0);
  };
}

function restartStore(wipe: boolean): Fault["inject"] {
  return async (cluster, _, random) => {
    await cluster.killStore(wipe);
    const restarted = sleep(random.below(1500)).then(() => cluster.startStore());
    return () => restarted;
  };
}

/** In the middle of a staged round a rank hears nothing of the store any more, and its host is killed while it is in doubt. */
async function clientLostInDoubt(cluster: ChaosCluster, rank: number): Promise<Heal> {
  await votes(cluster, rank);
  const proxy = cluster.storeProxies[rank]!;
  proxy.hold(true, ["back"]);
  await sleep(500);
  await kill(cluster, rank, "host");
  return async () => {
    await cluster.startHost(rank);
    proxy.hold(false);
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
    const folder = random.pick([commandQueuePath, agentStatePath]);
    harm(join(folder, random.pick(["data.mdb", "lock.mdb"])));
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
  const kind = random.pick([["--pid"], ["--time", "--monotonic", "10000"]]);
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

const isVoted = ({ store, commit }: ClusterOptions) => store === "tcp" && commit === "staged";
const onAll = (cluster: ChaosCluster, act: typeof kill | typeof restart) =>
  Promise.all(cluster.ranks.map((rank) => act(cluster, rank, "both")));

export const faults: readonly Fault[] = [
  { name: "nothing", whileRegistering: true, inject: async () => nothing },
  { name: "agent killed", isBlamed: true, isHeard: true, whileRegistering: true, inject: killed("agent") },
  { name: "host killed", isBlamed: true, isHeard: true, whileRegistering: true, inject: killed("host") },
  {
    name: "agent and host killed",
    isBlamed: true,
    isHeard: true,
    whileRegistering: true,
    inject: killed("both"),
  },
  {
    name: "agent killed at its vote",
    isBlamed: true,
    isHeard: true,
    needs: isVoted,
    inject: killedAtItsVote("agent"),
  },
  {
    name: "agent and host killed at their vote",
    isBlamed: true,
    isHeard: true,
    needs: isVoted,
    inject: killedAtItsVote("both"),
  },
  { name: "host killed while its rank is in doubt", needs: isVoted, inject: clientLostInDoubt },
  {
    name: "agent told to end",
    whileRegistering: true,
    inject: async (cluster, rank) => {
      const agent = cluster.agents[rank]!;
      const ended = agent.end("SIGTERM", 20_000);
      return async () => {
        if (!(await ended) || agent.ended !== "0")
          throw new Error(`the agent of rank ${rank} ended with ${agent.ended}: ${agent.output}`);
        await cluster.startAgent(rank);
      };
    },
  },
  {
    name: "everything killed",
    inject: async (cluster) => {
      await onAll(cluster, kill);
      return async () => {
        await onAll(cluster, restart);
      };
    },
  },
  { name: "agent stopped", lateMs: quiesceMs + 2500, inject: stopped("agent", 200, 4000) },
  {
    name: "agent stopped for long",
    lateMs: quiesceMs + 6500,
    inject: stopped("agent", quiesceMs + 3000, 1000),
  },
  { name: "host stopped", lateMs: 4500, inject: stopped("host", 200, 4000) },
  { name: "agent and host stopped", lateMs: quiesceMs + 2500, inject: stopped("both", 200, 4000) },
  { name: "connections of a rank cut", whileRegistering: true, inject: cut("peerProxies") },
  {
    name: "connections of a rank held up",
    lateMs: quiesceMs,
    whileRegistering: true,
    inject: held("peerProxies"),
  },
  { name: "what a rank is sent held up", lateMs: quiesceMs, inject: held("peerProxies", "there") },
  { name: "what a rank sends held up", lateMs: quiesceMs, inject: held("peerProxies", "back") },
  { name: "a rank cannot be reached", whileRegistering: true, inject: refused("peerProxies") },
  { name: "one rank's connections to the store cut", whileRegistering: true, inject: cut("storeProxies") },
  {
    name: "one rank's connections to the store held up",
    whileRegistering: true,
    inject: held("storeProxies"),
  },
  { name: "what the store answers one rank held up", inject: held("storeProxies", "back") },
  { name: "one rank does not reach the store", whileRegistering: true, inject: refused("storeProxies") },
  {
    name: "two ranks do not reach the store",
    whileRegistering: true,
    inject: forAWhile((cluster, rank, on) => {
      const other = cluster.ranks[(cluster.ranks.indexOf(rank) + 1) % cluster.ranks.length]!;
      for (const each of [rank, other]) cluster.storeProxies[each]!.refuse(on);
    }),
  },
  { name: "store slow", whileRegistering: true, inject: slowStore },
  { name: "store killed, and empty again", whileRegistering: true, inject: restartStore(true) },
  {
    name: "etcd killed, with its data back",
    needs: ({ store }) => store === "etcd",
    whileRegistering: true,
    inject: restartStore(false),
  },
  {
    name: "store stopped",
    whileRegistering: true,
    inject: async (cluster, _, random) => {
      cluster.signalStore("SIGSTOP");
      const continued = sleep(200 + random.below(2500)).then(() => cluster.signalStore("SIGCONT"));
      return () => continued;
    },
  },
  {
    name: "round aborted on one rank",
    isBlamed: true,
    inject: async (cluster, rank) => {
      cluster.hosts[rank]!.process.send({ abort: true });
      return nothing;
    },
  },
  {
    name: "batch closed on one rank",
    inject: async (cluster, rank) => {
      const closed = ask(cluster.hosts[rank]!, { act: "close" });
      return async () => {
        const { code, message } = await closed;
        if (code.startsWith("untyped")) throw new Error(`closing ended with ${code}: ${message}`);
      };
    },
  },
  { name: "one rank absent", isBlamed: true, absent: true, inject: async () => nothing },
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
  ...Object.entries(lies).flatMap(([what, make]): Fault[] => [
    {
      name: `connections of a rank ${what}`,
      // Over other transports what peers say tells what may be read, and no checksum is over it.
      needs: ({ transport }) => transport === "tcp",
      corrupts: true,
      lateMs: quiesceMs,
      whileRegistering: true,
      inject: lying("peerProxies", make),
    },
    {
      name: `one rank's connections to the store ${what}`,
      forges: true,
      whileRegistering: true,
      inject: lying("storeProxies", make),
    },
  ]),
  { name: "client of another namespace", needs: () => namespacesAllowed, inject: intrude },
];
