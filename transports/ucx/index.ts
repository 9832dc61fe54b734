import { TensorBusError } from "../../src/errors.ts";
import { queryUcx, type UcxOptions, useUcx } from "../../src/ffi/ucx.ts";
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
  /** The UUID of this rank's GPU, whose memory is moved, too: needs a UCX that was built for CUDA, here and at its peers. */
  readonly device?: string;
}

function capabilitiesOf(device: string | undefined): TransportCapabilities {
  return {
    memory: ["host", "shared", ...(device === undefined ? [] : (["cuda"] as const))],
    crossHost: true,
    checksum: false,
  };
}

/**
 * Moves tensors by UCX: a target reads what its source has registered, by InfiniBand or RoCE if there is such a device.
 * Plans, grants and failures travel over authenticated TCP connections, tensors do not. `TB_UNSUPPORTED` at `open` if a GPU
 * is named, and UCX was not built for CUDA. See this folder's README.
 */
export function ucx(options: UcxTransportOptions = {}): ConnectedTransport {
  const { library, transports, device } = options;
  return connectedTransport({
    name: "ucx",
    capabilities: capabilitiesOf(device),
    carrier: "ucx",
    ...(device === undefined ? {} : { device }),
    equip(session) {
      if (device !== undefined) requireCuda({ library, transports });
      useUcx(session, { library, transports });
    },
    meet: meetAt(options),
  });
}

function requireCuda(options: UcxOptions): void {
  const { version, cuda } = queryUcx(options);
  if (cuda) return;
  throw new TensorBusError(
    "TB_UNSUPPORTED",
    `UCX ${version} moves no CUDA memory: it was built without CUDA, is older than 1.16, or UCX_TLS or UCX_PROTO_ENABLE ` +
      "keep it from that. Take a build with CUDA (https://openucx.org), or leave the GPU to cuda-ipc and nccl",
  );
}
