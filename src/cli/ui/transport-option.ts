/** The option that picks among the transports: those whose carriers are registered. */
import { Option } from "commander";
import { type ShippedCarrier, shippedCarriers } from "../../ffi/carriers.ts";

/** A folder of `transports/`. Each has the name of its carrier, but for the one that streams. */
export type TransportFolder = Exclude<ShippedCarrier, "stream"> | "tcp";
export type TransportName = TransportFolder | "auto";
export const transportFolders: readonly TransportFolder[] = shippedCarriers.map((carrier) =>
  carrier === "stream" ? "tcp" : carrier,
);

export function transportOption(): Option {
  return new Option("--transport <name>", "how tensors travel; auto: the best for each pair of ranks")
    .choices(["auto", ...transportFolders])
    .default("auto")
    .env("TENSOR_BUS_TRANSPORT");
}
