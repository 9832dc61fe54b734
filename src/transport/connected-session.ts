/** What the transports have in common whose ranks meet over TCP connections, whatever then carries their buckets. */
import type { Carrier } from "../ffi/carriers.ts";
import { type Gather, NativeSession } from "./native-session.ts";
import { checkMembership, integerOption } from "./open-options.ts";
import { type DirectoryScope, PeerDirectory } from "./peer-directory.ts";
import type { OpenOptions, Transport, TransportCapabilities } from "./transport.ts";

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

/** How ranks meet: where one listens, and what it proves to the others. */
export interface Meeting {
  readonly tuning: ReturnType<typeof checkTuning>;
  readonly connections: number;
  readonly namespace: string | undefined;
  readonly listenHost: string;
  readonly listenPort: number;
  /** The address that others connect to; without a port, the one that is listened on. */
  readonly advertised: { readonly host: string; readonly port?: number };
  readonly secrets: readonly Uint8Array[];
}

/** What a transport that gathers ranks has to do it with. */
export interface GatherContext {
  readonly session: bigint;
  readonly scope: DirectoryScope;
  readonly directory: PeerDirectory;
  readonly open: OpenOptions;
}

/** A transport that can be one of several in a session in which each pair of ranks gets the best of them: `select`. */
export interface ConnectedTransport extends Transport {
  readonly carrier: Carrier;
  /** The UUID of the GPU whose memory it moves; absent if it moves none of a GPU. */
  readonly device?: string;
  /** Carriers that change how those of others are used. */
  readonly also?: readonly Carrier[];
  /** Gives the native session a library that its carrier needs, before anything is registered or published. */
  readonly equip?: (session: bigint) => void;
  /** Called with the native session before anything is prepared; absent if it prepares with each peer alone. */
  readonly gather?: (context: GatherContext) => Gather;
  /** Resolves addresses and reads secrets. */
  meet(): Promise<Meeting>;
}

export function connectedTransport(transport: Omit<ConnectedTransport, "open">): ConnectedTransport {
  const { carrier, also = [], ...setup } = transport;
  return {
    ...transport,
    open: (open) => openConnected({ ...setup, carriers: [carrier, ...also] }, open),
  };
}

interface ConnectedSetup {
  /** Under which ranks publish their addresses. */
  readonly name: string;
  readonly capabilities: TransportCapabilities;
  readonly carriers: readonly Carrier[];
  readonly device?: string | undefined;
  readonly meet: () => Promise<Meeting>;
  readonly equip?: ConnectedTransport["equip"] | undefined;
  readonly gather?: ConnectedTransport["gather"] | undefined;
}

/** Opens a session that listens, and publishes where. */
export async function openConnected(setup: ConnectedSetup, open: OpenOptions): Promise<NativeSession> {
  const membership = checkMembership(open);
  const { name, capabilities, carriers, device, equip, gather } = setup;
  const { tuning, connections, listenHost, listenPort, advertised, secrets, ...meeting } = await setup.meet();
  const namespace = meeting.namespace ?? open.store.namespace;
  const scope = { transport: name, namespace, generation: membership.generation, secrets };
  const directory = new PeerDirectory(open.store, scope);
  const session = new NativeSession({
    capabilities,
    stream: "tcp",
    options: {
      kind: "tcp",
      ...membership,
      ...tuning,
      connections,
      carriers,
      listenHost,
      listenPort,
      namespace,
      ...(device === undefined ? {} : { device }),
    },
    secrets,
    directory,
    ...(equip === undefined ? {} : { equip }),
    ...(gather === undefined
      ? {}
      : { gather: (handle: bigint) => gather({ session: handle, scope, directory, open }) }),
  });
  try {
    const { host, port = session.port } = advertised;
    await directory.publish(membership.rank, { host, port, identity: session.identity }, open);
  } catch (error) {
    await session.close();
    throw error;
  }
  return session;
}
