import {
  type ConnectedTransport,
  checkTuning,
  connectedTransport,
  type SessionTuning,
} from "../../src/transport/connected-session.ts";
import { loadSecrets, type SecretOptions } from "../../src/transport/secret.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";

export interface ShmTransportOptions extends SecretOptions, SessionTuning {}

const capabilities: TransportCapabilities = {
  memory: ["host", "shared"],
  crossHost: false,
  checksum: false,
};

const loopback = "127.0.0.1";

/**
 * Moves tensors between processes of one user on one host: a target reads them where they lie in the source's memory, and
 * writes them where they belong, in one pass. Ranks meet over loopback connections, which carry no tensors.
 */
export function shm(options: ShmTransportOptions = {}): ConnectedTransport {
  const tuning = checkTuning(options);
  return connectedTransport({
    name: "shm",
    capabilities,
    carrier: "shm",
    meet: async () => ({
      tuning,
      connections: 1,
      namespace: options.namespace,
      listenHost: loopback,
      listenPort: 0,
      advertised: { host: loopback },
      secrets: await loadSecrets(options, true),
    }),
  });
}
