import { useUcx } from "../../src/ffi/ucx.ts";
import { type ConnectedTransport, connectedTransport } from "../../src/transport/connected-session.ts";
import { type ListenOptions, meetAt } from "../../src/transport/meeting.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";

export interface UcxTransportOptions extends ListenOptions {
  /** The port to listen on for control connections; default 0, a free one. */
  readonly port?: number;
  /** The library; default: `TENSOR_BUS_LIBUCP`, else `libucp.so.0`. */
  readonly library?: string;
  /**
   * UCX's own transports, in the words of `UCX_TLS`: `"rc,sm"`. Default: what that variable says, else all but TCP, by which
   * UCX lets everybody who reaches its port read this process.
   */
  readonly transports?: string;
}

const capabilities: TransportCapabilities = {
  memory: ["host", "shared"],
  crossHost: true,
  checksum: false,
};

/**
 * Moves tensors by UCX: a target reads what its source has registered, by InfiniBand or RoCE if there is such a device.
 * Plans, grants and failures travel over authenticated TCP connections, tensors do not. See this folder's README.
 */
export function ucx(options: UcxTransportOptions = {}): ConnectedTransport {
  const { library, transports } = options;
  return connectedTransport({
    name: "ucx",
    capabilities,
    carrier: "ucx",
    equip: (session) => useUcx(session, { library, transports }),
    meet: meetAt(options),
  });
}
