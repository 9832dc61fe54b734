/** A transport that only tests have: targets copy over a file. docs/adding-a-transport.md is written from it. */
import {
  type ConnectedTransport,
  checkTuning,
  connectedTransport,
  type SessionTuning,
} from "../../../src/transport/connected-session.ts";
import type { TransportCapabilities } from "../../../src/transport/transport.ts";
import { shm } from "../../../transports/shm/index.ts";

const capabilities: TransportCapabilities = shm().capabilities;
const loopback = "127.0.0.1";

export function file(options: SessionTuning = {}): ConnectedTransport {
  const tuning = checkTuning(options);
  return connectedTransport({
    name: "file",
    capabilities,
    carrier: "file",
    meet: async () => ({
      tuning,
      connections: 1,
      namespace: undefined,
      listenHost: loopback,
      listenPort: 0,
      advertised: { host: loopback },
      secrets: [new Uint8Array(0)],
    }),
  });
}
