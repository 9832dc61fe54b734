/** The transport as the command line offers it. */
import { TensorBusError } from "../../src/errors.ts";
import { ncclSoname, ncclVariable, ncclVersion } from "../../src/ffi/nccl.ts";
import { deviceFor, type Offer, type OptionalLibrary } from "../../src/transport/offer.ts";
import { nccl } from "./index.ts";

/** Only if its library is there, unless it was named: then its absence is an error, when the session is opened. */
export const offer: Offer = (request) => {
  const device = deviceFor("nccl", request);
  return device !== undefined && (request.named || isThere()) ? nccl({ device }) : undefined;
};

function isThere(): boolean {
  try {
    ncclVersion();
    return true;
  } catch {
    return false;
  }
}

export const library: OptionalLibrary = {
  name: "NCCL",
  advice: `pip install nvidia-nccl-cu13, or NVIDIA's package libnccl2; ${ncclVariable} names another`,
  /** Loads it, since a version that is too old is as good as none. */
  async find({ environment, pathOf }) {
    const path = environment[ncclVariable] || (await pathOf(ncclSoname));
    if (path === undefined) throw new TensorBusError("TB_LIBRARY", `${ncclSoname} not found`);
    try {
      return `${ncclVersion(path).text}, ${path}`;
    } catch (error) {
      if (error instanceof TensorBusError && error.code === "TB_NATIVE_MISSING") {
        return `${path}; its version is unknown`;
      }
      throw error;
    }
  },
};
