/** A transport that only tests have: targets copy over a file. docs/adding-a-transport.md is written from it. */
import {
  type ConnectedTransport,
  connectedTransport,
  type SessionTuning,
} from "../../../src/transport/connected-session.ts";
import { meetOnLoopback } from "../../../src/transport/meeting.ts";
import type { TransportCapabilities } from "../../../src/transport/transport.ts";
import { shm } from "../../../transports/shm/index.ts";

const capabilities: TransportCapabilities = shm().capabilities;

export function file(options: SessionTuning = {}): ConnectedTransport {
  return connectedTransport({
    name: "file",
    capabilities,
    carrier: "file",
    meet: meetOnLoopback(options),
  });
}
