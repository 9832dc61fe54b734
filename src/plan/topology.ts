import { checkKeys, fail, integerIn } from "./check.ts";
import type { TopologyInput } from "./types.ts";

export interface NormalTopology {
  /** 0 where `hosts` says it. */
  readonly ranksPerHost: number;
  readonly hosts: readonly number[];
  readonly hostMBps: number;
  readonly networkMBps: number;
  readonly latencyUs: number;
}

const keys = ["ranksPerHost", "hosts", "hostMBps", "networkMBps", "latencyUs"] as const;
const most = 2 ** 31 - 1;

/** Checks a topology for a world of so many ranks; `TB_TOPOLOGY`. */
export function normalTopology(
  topology: TopologyInput | undefined,
  world: number,
): NormalTopology | undefined {
  if (topology === undefined) return undefined;
  if (typeof topology !== "object" || topology === null) {
    throw fail("TB_TOPOLOGY", "topology must be an object", { topology });
  }
  checkKeys(topology, keys, "topology");
  if ((topology.ranksPerHost === undefined) === (topology.hosts === undefined)) {
    throw fail("TB_TOPOLOGY", "a topology has either ranksPerHost or hosts", { topology });
  }
  if (topology.hosts !== undefined) checkHosts(topology.hosts, world);
  return {
    ranksPerHost: integerIn(topology.ranksPerHost, "ranksPerHost", 1, most, 0, "TB_TOPOLOGY"),
    hosts: topology.hosts === undefined ? [] : [...topology.hosts],
    hostMBps: required(topology.hostMBps, "hostMBps", 1),
    networkMBps: required(topology.networkMBps, "networkMBps", 1),
    latencyUs: required(topology.latencyUs, "latencyUs", 0),
  };
}

function required(value: number | undefined, name: string, low: number): number {
  return integerIn(value ?? Number.NaN, name, low, most, 0, "TB_TOPOLOGY");
}

function checkHosts(hosts: readonly number[], world: number): void {
  if (!Array.isArray(hosts) || hosts.length < world) {
    throw fail("TB_TOPOLOGY", `hosts must name the host of each of the ${world} ranks`, {
      hosts: hosts.length,
      world,
    });
  }
  for (const [rank, host] of hosts.entries()) integerIn(host, `hosts[${rank}]`, 0, most, 0, "TB_TOPOLOGY");
}

/** The host of a rank. */
export function hostOf(topology: NormalTopology, rank: number): number {
  return topology.ranksPerHost === 0 ? topology.hosts[rank]! : Math.floor(rank / topology.ranksPerHost);
}
