/** The transports that the command line composes, and the option that picks among them. */
import { Option } from "commander";
import { shm } from "../../transports/shm/index.ts";
import { type TcpTransportOptions, tcp } from "../../transports/tcp/index.ts";
import { select } from "../transport/selection.ts";
import type { Transport } from "../transport/transport.ts";

export const transportNames = ["auto", "tcp", "shm"] as const;
export type TransportName = (typeof transportNames)[number];

export function transportOption(): Option {
  return new Option("--transport <name>", "how tensors travel; auto: the best for each pair of ranks")
    .choices(transportNames)
    .default("auto")
    .env("TENSOR_BUS_TRANSPORT");
}

/** The best for each pair of ranks, or the one of that name for all. `meeting` says how ranks meet, whichever it is. */
export function chooseTransport(name: TransportName, meeting: TcpTransportOptions = {}): Transport {
  return select([shm(), tcp(meeting)], name === "auto" ? {} : { force: name });
}
