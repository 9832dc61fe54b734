/** The transport as the command line offers it. */
import { deviceFor, type Offer } from "../../src/transport/offer.ts";
import { cudaIpc } from "./index.ts";

export const offer: Offer = (request) => {
  const device = deviceFor("cuda-ipc", request);
  return device === undefined ? undefined : cudaIpc({ device });
};
