/** Several transports as one: each pair of ranks gets the best that both can. */
import type { MemoryKind } from "../memory/memory.ts";
import { type ConnectedTransport, openConnected } from "./connected-session.ts";
import type { Transport, TransportCapabilities } from "./transport.ts";

export interface SelectOptions {
  /**
   * Use the one of this name for all peers, whatever else could. If it cannot serve a pair, `prepare` fails with
   * `TB_UNSUPPORTED`, which says what is missing. Default: the best for each pair.
   */
  readonly force?: string;
}

/**
 * A transport that moves the buckets of each pair of ranks by the best of several: by what needs the fewest copies, as far
 * as both ranks offer it and host, user, device and kind of memory allow (`docs/selection.md`). Both ends come to the same
 * choice by themselves; `PreparedTransfer.transports` says which it is. Ranks meet as the first of the transports does
 * that crosses hosts, so its addresses and secrets are those that count.
 *
 * ```ts
 * const transport = select([shm(), tcp({ host: "10.0.0.7", secretFile: "/run/secrets/tensorbus" })]);
 * ```
 *
 * A `TypeError` if one of them cannot share a session, none has the name of `force`, or they name several GPUs.
 */
export function select(transports: readonly Transport[], { force }: SelectOptions = {}): Transport {
  const all = transports.map(requireConnected);
  const used = force === undefined ? all : all.filter(({ name }) => name === force);
  if (used.length === 0) {
    const names = all.map(({ name }) => name).join(", ");
    throw new TypeError(
      force === undefined ? "select needs a transport" : `there is no ${force} among ${names}`,
    );
  }
  const { name, meet } = all.find(({ capabilities }) => capabilities.crossHost) ?? all[0]!;
  const capabilities = unite(used.map((transport) => transport.capabilities));
  const carriers = [...new Set(used.flatMap(({ carrier, also = [] }) => [carrier, ...also]))];
  const gather = used.find((transport) => transport.gather !== undefined)?.gather;
  const equips = used.flatMap(({ equip }) => equip ?? []);
  const equip = (session: bigint) => {
    for (const each of equips) each(session);
  };
  const devices = new Set(used.flatMap(({ device }) => device ?? []));
  if (devices.size > 1)
    throw new TypeError(`a rank may have only one GPU, not ${[...devices].join(" and ")}`);
  const [device] = devices;
  return {
    name: used.length === 1 ? used[0]!.name : "select",
    capabilities,
    open: (open) => openConnected({ name, capabilities, carriers, device, equip, gather, meet }, open),
  };
}

function requireConnected(transport: Transport): ConnectedTransport {
  if ("carrier" in transport && "meet" in transport) return transport as ConnectedTransport;
  throw new TypeError(`the ${transport.name} transport cannot share a session with others`);
}

/** What at least one of them can. What a pair can is less, and known at `prepare`. */
function unite(all: readonly TransportCapabilities[]): TransportCapabilities {
  const any = (what: (capabilities: TransportCapabilities) => boolean) => all.some(what);
  return {
    memory: [...new Set(all.flatMap(({ memory }): readonly MemoryKind[] => memory))],
    crossHost: any(({ crossHost }) => crossHost),
    checksum: any(({ checksum }) => checksum),
  };
}
