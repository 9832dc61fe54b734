/** The transport as the command line offers it. */
import { hasRdmaDevice, queryUcx, ucxVariable } from "../../src/ffi/ucx.ts";
import type { Offer, OptionalLibrary } from "../../src/transport/offer.ts";
import { ucx } from "./index.ts";

/**
 * UCX is loaded only if it could be of use, since it registers, and so pins, all that is moved. Whoever names it and names a GPU
 * wants both: a library without CUDA is an error then.
 */
export const offer: Offer = ({ named, meeting, device }) => {
  const found = named ? undefined : findRdma();
  if (!named && found === undefined) return undefined;
  return ucx({ ...meeting, ...(device !== undefined && found?.cuda !== false ? { device } : {}) });
};

/** What UCX can do, if it finds a device that reads other hosts' memory. */
function findRdma(): { readonly cuda: boolean } | undefined {
  try {
    const found = hasRdmaDevice() ? queryUcx() : undefined;
    return found?.rdma ? found : undefined;
  } catch {
    return undefined;
  }
}

export const library: OptionalLibrary = {
  name: "UCX",
  advice: `install libucx0 (Debian) or ucx (RPM), 1.13 or newer; ${ucxVariable} names another libucp`,
  /** Asks it for its devices: without one for RDMA it is of use only to those who name it. */
  async find({ environment }) {
    const { version, rdma, cuda } = queryUcx({ library: environment[ucxVariable] });
    const devices = `${rdma ? "an" : "no"} RDMA device, ${cuda ? "moves" : "does not move"} CUDA memory`;
    return `${version}, ${devices}`;
  },
};
