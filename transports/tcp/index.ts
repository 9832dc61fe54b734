import { NativeSession } from "../../src/transport/native-session.ts";
import { checkMembership, integerOption } from "../../src/transport/open-options.ts";
import { PeerDirectory } from "../../src/transport/peer-directory.ts";
import type { OpenOptions, Transport, TransportCapabilities } from "../../src/transport/transport.ts";
import { resolveEndpoint } from "./endpoint.ts";
import { loadSecrets, type SecretOptions } from "./secret.ts";

export interface TcpTransportOptions extends SecretOptions {
  /** Where to listen: an address or a name; default `127.0.0.1`. Beyond loopback a secret is needed (`TB_AUTH`). */
  readonly host?: string;
  /** The port to listen on; default 0, a free one. A port can serve one session at a time. */
  readonly port?: number;
  /**
   * What others connect to, where that is not `host` and the port that is listened on: an address or a name, or either
   * with a port (`node7:9000`, `[fd00::7]:9000`). Needed where `host` is `0.0.0.0` or `::`.
   */
  readonly advertise?: string;
  /** Sockets per pair of ranks: 1 to 16, default 1. */
  readonly connections?: number;
  /** Threads of a session that move data: 1 to 16, default 1. */
  readonly ioThreads?: number;
  /** Milliseconds after which a silent host is lost; default 10,000. */
  readonly peerTimeoutMs?: number;
  /** Milliseconds that an end waits for memory to be quiet before it is quarantined; default 5,000. */
  readonly quiesceMs?: number;
  /** Ranks of other namespaces are refused; default: the store's. */
  readonly namespace?: string;
}

const capabilities: TransportCapabilities = {
  memory: ["host", "shared"],
  fuses: "kernel",
  initiates: "both",
  crossProcess: true,
  crossHost: true,
  checksum: true,
};

/**
 * Moves tensors between processes over TCP. Every rank listens; of two ranks that a program joins, one connects. Both
 * prove that they know the secret before anything else is read. Traffic is not encrypted: see this folder's README.
 */
export function tcp(options: TcpTransportOptions = {}): Transport {
  const port = integerOption("port", options.port, { min: 0, max: 65_535, preset: 0 });
  const tuning = {
    connections: integerOption("connections", options.connections, { min: 1, max: 16, preset: 1 }),
    ioThreads: integerOption("ioThreads", options.ioThreads, { min: 1, max: 16, preset: 1 }),
    peerTimeoutMs: integerOption("peerTimeoutMs", options.peerTimeoutMs, {
      min: 100,
      max: 3_600_000,
      preset: 10_000,
    }),
    quiesceMs: integerOption("quiesceMs", options.quiesceMs, { min: 1, max: 600_000, preset: 5000 }),
  };
  return {
    name: "tcp",
    capabilities,
    async open(open: OpenOptions) {
      const membership = checkMembership(open);
      const endpoint = await resolveEndpoint(options);
      const secrets = await loadSecrets(options, endpoint.loopback);
      const namespace = options.namespace ?? open.store.namespace;
      const scope = { transport: "tcp", namespace, generation: membership.generation, secrets };
      const directory = new PeerDirectory(open.store, scope);
      const session = new NativeSession({
        capabilities,
        options: {
          kind: "tcp",
          ...membership,
          ...tuning,
          listenHost: endpoint.listenHost,
          listenPort: port,
          namespace,
        },
        secrets,
        directory,
      });
      try {
        const { host, port = session.port } = endpoint.advertised;
        await directory.publish(membership.rank, { host, port }, open);
      } catch (error) {
        await session.close();
        throw error;
      }
      return session;
    },
  };
}
