/** What the transports have in common whose ranks meet over TCP connections, whatever then carries their buckets. */
import type { Carrier } from "../ffi/session.ts";
import { NativeSession } from "./native-session.ts";
import { checkMembership, integerOption } from "./open-options.ts";
import { PeerDirectory } from "./peer-directory.ts";
import type { OpenOptions, TransportCapabilities } from "./transport.ts";

export interface SessionTuning {
  /** Threads of a session that move data: 1 to 16, default 1. */
  readonly ioThreads?: number;
  /** Milliseconds after which a silent host is lost; default 10,000. */
  readonly peerTimeoutMs?: number;
  /** Milliseconds that an end waits for memory to be quiet before it is quarantined; default 5,000. */
  readonly quiesceMs?: number;
  /** Ranks of other namespaces are refused; default: the store's. */
  readonly namespace?: string;
}

/** The tuning with its defaults, checked when a transport is made. */
export function checkTuning(options: SessionTuning) {
  return {
    ioThreads: integerOption("ioThreads", options.ioThreads, { min: 1, max: 16, preset: 1 }),
    peerTimeoutMs: integerOption("peerTimeoutMs", options.peerTimeoutMs, {
      min: 100,
      max: 3_600_000,
      preset: 10_000,
    }),
    quiesceMs: integerOption("quiesceMs", options.quiesceMs, { min: 1, max: 600_000, preset: 5000 }),
  };
}

export interface ConnectedSetup {
  /** The transport's name, under which ranks publish their addresses. */
  readonly name: string;
  readonly capabilities: TransportCapabilities;
  readonly tuning: ReturnType<typeof checkTuning>;
  readonly connections: number;
  readonly carriers: readonly Carrier[];
  readonly namespace: string | undefined;
  readonly listenHost: string;
  readonly listenPort: number;
  /** What others connect to; without a port, the one that is listened on. */
  readonly advertised: { readonly host: string; readonly port?: number };
  readonly secrets: readonly Uint8Array[];
}

/** Opens a session that listens, and publishes where. */
export async function openConnected(setup: ConnectedSetup, open: OpenOptions): Promise<NativeSession> {
  const membership = checkMembership(open);
  const { name, capabilities, tuning, connections, carriers, listenHost, listenPort, secrets } = setup;
  const namespace = setup.namespace ?? open.store.namespace;
  const scope = { transport: name, namespace, generation: membership.generation, secrets };
  const directory = new PeerDirectory(open.store, scope);
  const session = new NativeSession({
    capabilities,
    options: {
      kind: "tcp",
      ...membership,
      ...tuning,
      connections,
      carriers,
      listenHost,
      listenPort,
      namespace,
    },
    secrets,
    directory,
  });
  try {
    const { host, port = session.port } = setup.advertised;
    await directory.publish(membership.rank, { host, port }, open);
  } catch (error) {
    await session.close();
    throw error;
  }
  return session;
}
