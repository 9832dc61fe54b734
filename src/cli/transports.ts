/** The transports that the command line composes. */
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { nccl } from "../../transports/nccl/index.ts";
import { shm } from "../../transports/shm/index.ts";
import { type TcpTransportOptions, tcp } from "../../transports/tcp/index.ts";
import { ucx } from "../../transports/ucx/index.ts";
import { TensorBusError } from "../errors.ts";
import { ncclVersion } from "../ffi/nccl.ts";
import { hasRdmaDevice, queryUcx } from "../ffi/ucx.ts";
import { select } from "../transport/selection.ts";
import type { Transport } from "../transport/transport.ts";
import type { TransportName } from "./ui/transport-option.ts";

/**
 * The best for each pair of ranks, or the one of that name for all. `meeting` says how ranks meet, whichever it is, and
 * `device` on which GPU this rank's tensors may lie.
 */
export function chooseTransport(
  name: TransportName,
  meeting: TcpTransportOptions = {},
  device?: string,
): Transport {
  if ((name === "cuda-ipc" || name === "nccl") && device === undefined) {
    throw new TensorBusError("TB_UNSUPPORTED", `the transport ${name} needs a GPU: \`agent --device UUID\``);
  }
  // Ranks meet as the first does that crosses hosts: by tcp.
  return select(
    [
      shm(),
      tcp(meeting),
      ...ofUcx(name, meeting, device),
      ...(device === undefined ? [] : ofDevice(device, name)),
    ],
    name === "auto" ? {} : { force: name },
  );
}

/**
 * UCX is loaded only if it could be of use, since it registers, and so pins, all that is moved. Whoever asks for it and names a
 * GPU wants both: a library without CUDA is an error then.
 */
function ofUcx(name: TransportName, meeting: TcpTransportOptions, device: string | undefined): Transport[] {
  const found = name === "auto" ? findRdma() : undefined;
  if (name !== "ucx" && found === undefined) return [];
  return [ucx({ ...meeting, ...(device !== undefined && found?.cuda !== false ? { device } : {}) })];
}

/** What UCX can do, if it finds a device that reads other hosts' memory. */
function findRdma(): { readonly cuda: boolean } | undefined {
  try {
    const found = hasRdmaDevice() ? queryUcx() : undefined;
    return found?.rdma ? found : undefined;
  } catch {
    return undefined;
  }
}

/** What a GPU has; NCCL only if its library is, unless it was asked for: then its absence is an error. */
function ofDevice(device: string, name: TransportName): Transport[] {
  return [cudaIpc({ device }), ...(name === "nccl" || hasNccl() ? [nccl({ device })] : [])];
}

function hasNccl(): boolean {
  try {
    ncclVersion();
    return true;
  } catch {
    return false;
  }
}
