/** The option that picks among the transports. */
import { Option } from "commander";

const transportNames = ["auto", "tcp", "shm", "cuda-ipc", "nccl", "ucx"] as const;
export type TransportName = (typeof transportNames)[number];

export function transportOption(): Option {
  return new Option("--transport <name>", "how tensors travel; auto: the best for each pair of ranks")
    .choices(transportNames)
    .default("auto")
    .env("TENSOR_BUS_TRANSPORT");
}
