import { type ConnectedTransport, connectedTransport } from "../../src/transport/connected-session.ts";
import { type ListenOptions, meetAt } from "../../src/transport/meeting.ts";
import { integerOption } from "../../src/transport/open-options.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";

export interface TcpTransportOptions extends ListenOptions {
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
  const connections = integerOption("connections", options.connections, { min: 1, max: 16, preset: 1 });
  return connectedTransport({
    name: "tcp",
    capabilities,
    carrier: "stream",
    meet: meetAt(options, connections),
  });
}
