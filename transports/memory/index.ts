import { NativeSession } from "../../src/transport/native-session.ts";
import { checkMembership, integerOption } from "../../src/transport/open-options.ts";
import type { OpenOptions, Transport, TransportCapabilities } from "../../src/transport/transport.ts";
import { SharedHub } from "./hub.ts";

export interface MemoryTransportOptions {
  /** Threads of a session that move data: 1 to 16, default 1. */
  readonly ioThreads?: number;
  /** Milliseconds that an end waits for memory to be quiet before it is quarantined; default 5,000. */
  readonly quiesceMs?: number;
}

const capabilities: TransportCapabilities = {
  memory: ["host", "shared"],
  crossHost: false,
  checksum: true,
};

/**
 * Moves tensors between ranks of one process, each with a session of its own. All sessions of one `Transport` value and
 * generation meet each other, and nobody else. It is the reference that other transports are tested against, and needs
 * no store to find peers.
 */
export function memory(options: MemoryTransportOptions = {}): Transport {
  const ioThreads = integerOption("ioThreads", options.ioThreads, { min: 1, max: 16, preset: 1 });
  const quiesceMs = integerOption("quiesceMs", options.quiesceMs, { min: 1, max: 600_000, preset: 5000 });
  const hub = new SharedHub();
  return {
    name: "memory",
    capabilities,
    async open(open: OpenOptions) {
      const membership = checkMembership(open);
      return hub.open((handle, closed) => {
        const native = { kind: "memory", ...membership, hub: handle, ioThreads, quiesceMs } as const;
        return new NativeSession({ capabilities, stream: "memory", options: native, secrets: [], closed });
      });
    },
  };
}
