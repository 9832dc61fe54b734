import { checkKeys, fail, integerIn } from "./check.ts";
import type { HostLinkInput, TopologyInput } from "./types.ts";

export interface NormalTopology {
  /** 0 if `hosts` says it. */
  readonly ranksPerHost: number;
  readonly hosts: readonly number[];
  readonly hostMBps: number;
  readonly networkMBps: number;
  readonly latencyUs: number;
  /** By their hosts, the lower one first; sorted. */
  readonly links: readonly HostLinkInput[];
}

const keys = ["ranksPerHost", "hosts", "hostMBps", "networkMBps", "latencyUs", "links"] as const;
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
    throw fail("TB_TOPOLOGY", "a topology needs either ranksPerHost or hosts, and not both", { topology });
  }
  if (topology.hosts !== undefined) checkHosts(topology.hosts, world);
  return {
    ranksPerHost: integerIn(topology.ranksPerHost, "ranksPerHost", 1, most, 0, "TB_TOPOLOGY"),
    hosts: topology.hosts === undefined ? [] : [...topology.hosts],
    hostMBps: required(topology.hostMBps, "hostMBps", 1),
    networkMBps: required(topology.networkMBps, "networkMBps", 1),
    latencyUs: required(topology.latencyUs, "latencyUs", 0),
    links: normalLinks(topology.links ?? []),
  };
}

function normalLinks(links: readonly HostLinkInput[]): HostLinkInput[] {
  if (!Array.isArray(links)) throw fail("TB_TOPOLOGY", "links must be an array", { links });
  const sorted = links.map(normalLink).sort((a, b) => a.hosts[0] - b.hosts[0] || a.hosts[1] - b.hosts[1]);
  for (const [index, { hosts }] of sorted.entries()) {
    const next = sorted[index + 1]?.hosts;
    if (next?.[0] === hosts[0] && next[1] === hosts[1]) {
      throw fail("TB_TOPOLOGY", `links name the hosts ${hosts[0]} and ${hosts[1]} twice`, { hosts });
    }
  }
  return sorted;
}

function normalLink(link: HostLinkInput, index: number): HostLinkInput {
  const place = `links[${index}]`;
  if (typeof link !== "object" || link === null)
    throw fail("TB_TOPOLOGY", `${place} must be an object`, { link });
  checkKeys(link, ["hosts", "MBps"], place);
  if (!Array.isArray(link.hosts) || link.hosts.length !== 2) {
    throw fail("TB_TOPOLOGY", `${place}.hosts must name two hosts`, { hosts: link.hosts });
  }
  const [one, other] = link.hosts.map((host, at) =>
    integerIn(host ?? Number.NaN, `${place}.hosts[${at}]`, 0, most, 0, "TB_TOPOLOGY"),
  ) as [number, number];
  return { hosts: one <= other ? [one, other] : [other, one], MBps: required(link.MBps, `${place}.MBps`, 1) };
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

/** How fast a rank of one host exchanges bytes with one of another, or of the same, in MB/s. */
export function speedsBetween(topology: NormalTopology): (host: number, other: number) => number {
  const { hostMBps, networkMBps, links } = topology;
  const otherwise = (host: number, other: number) => (host === other ? hostMBps : networkMBps);
  if (links.length === 0) return otherwise;
  const named = new Map<number, Map<number, number>>();
  for (const { hosts, MBps } of links) {
    for (const [host, other] of [hosts, [hosts[1], hosts[0]] as const]) {
      named.set(host, (named.get(host) ?? new Map<number, number>()).set(other, MBps));
    }
  }
  return (host, other) => named.get(host)?.get(other) ?? otherwise(host, other);
}

/** The lowest speed between any of these hosts and any of those: of hosts with themselves, or of different ones. */
export function slowestOf(
  { hostMBps, networkMBps, links }: NormalTopology,
  some: ReadonlySet<number>,
  others: ReadonlySet<number>,
  within: boolean,
): number {
  const named = links.filter(
    ({ hosts: [one, other] }) =>
      (one === other) === within &&
      ((some.has(one) && others.has(other)) || (some.has(other) && others.has(one))),
  );
  const common = [...some].filter((host) => others.has(host)).length;
  // Two hosts of both sets are one link, not two.
  const all = within ? common : some.size * others.size - common - (common * (common - 1)) / 2;
  const slowest = named.reduce((least, { MBps }) => Math.min(least, MBps), Number.POSITIVE_INFINITY);
  return named.length === all && all > 0 ? slowest : Math.min(slowest, within ? hostMBps : networkMBps);
}
