import {
  type ConnectedTransport,
  checkTuning,
  connectedTransport,
  type SessionTuning,
} from "../../src/transport/connected-session.ts";
import { type EndpointOptions, resolveEndpoint } from "../../src/transport/endpoint.ts";
import { integerOption } from "../../src/transport/open-options.ts";
import { loadSecrets, type SecretOptions } from "../../src/transport/secret.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";

export interface TcpTransportOptions extends SecretOptions, SessionTuning, EndpointOptions {
  /** The port to listen on; default 0, a free one. A port can serve one session at a time. */
  readonly port?: number;
  /** Sockets per pair of ranks: 1 to 16, default 1. */
  readonly connections?: number;
}

const capabilities: TransportCapabilities = {
  memory: ["host", "shared"],
  crossHost: true,
  checksum: true,
};

/**
 * Moves tensors between processes over TCP. Every rank listens; of two ranks that a program joins, one connects. Both
 * prove that they know the secret before anything else is read. Traffic is not encrypted: see this folder's README.
 */
export function tcp(options: TcpTransportOptions = {}): ConnectedTransport {
  const listenPort = integerOption("port", options.port, { min: 0, max: 65_535, preset: 0 });
  const connections = integerOption("connections", options.connections, { min: 1, max: 16, preset: 1 });
  const tuning = checkTuning(options);
  return connectedTransport({
    name: "tcp",
    capabilities,
    carrier: "stream",
    meet: async () => {
      const { listenHost, loopback, advertised } = await resolveEndpoint(options);
      const secrets = await loadSecrets(options, loopback);
      return {
        tuning,
        connections,
        namespace: options.namespace,
        listenHost,
        listenPort,
        advertised,
        secrets,
      };
    },
  });
}
