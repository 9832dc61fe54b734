import {
  type ConnectedTransport,
  connectedTransport,
  type SessionTuning,
} from "../../src/transport/connected-session.ts";
import { meetOnLoopback } from "../../src/transport/meeting.ts";
import type { SecretOptions } from "../../src/transport/secret.ts";
import type { TransportCapabilities } from "../../src/transport/transport.ts";

export interface CudaIpcTransportOptions extends SecretOptions, SessionTuning {
  /** The UUID of the GPU that this rank's tensors lie on, as `nvidia-smi -L` prints it. */
  readonly device: string;
}

const capabilities: TransportCapabilities = {
  memory: ["cuda"],
  crossHost: false,
  checksum: false,
};

/**
 * Moves tensors in memory of GPUs between processes of one user on one host: a target opens the memory of its source and
 * its GPU moves elements to where they belong, casts and reductions included, with no staging between. Ranks meet over
 * loopback connections, which carry no tensors. `TB_LIBRARY` and `TB_DEVICE` at `open` if there is no driver or GPU.
 */
export function cudaIpc(options: CudaIpcTransportOptions): ConnectedTransport {
  return connectedTransport({
    name: "cuda-ipc",
    capabilities,
    carrier: "cuda-ipc",
    device: options.device,
    meet: meetOnLoopback(options),
  });
}
