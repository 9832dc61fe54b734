import {
  type ConnectedTransport,
  connectedTransport,
  type SessionTuning,
} from "../../src/transport/connected-session.ts";
import { meetOnLoopback } from "../../src/transport/meeting.ts";
import type { SecretOptions } from "../../src/transport/secret.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";

export interface ShmTransportOptions extends SecretOptions, SessionTuning {}

const capabilities: TransportCapabilities = {
  memory: ["host", "shared"],
  crossHost: false,
  checksum: false,
};

/**
 * Moves tensors between processes of one user on one host: a target reads them where they lie in the source's memory, and
 * writes them where they belong, in one pass. Ranks meet over loopback connections, which carry no tensors.
 */
export function shm(options: ShmTransportOptions = {}): ConnectedTransport {
  return connectedTransport({
    name: "shm",
    capabilities,
    carrier: "shm",
    meet: meetOnLoopback(options),
  });
}
