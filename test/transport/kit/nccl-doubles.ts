/** What lets a test run on the doubles of libcuda and libnccl: see native/test/doubles. Each rank has the device of its number. */
import { join } from "node:path";
import { memoryStores } from "../../../src/store/memory-store.ts";
import type { Transport } from "../../../src/transport/transport.ts";
import { useCudaDouble } from "../../doubles/cuda/index.ts";
import type { Subject } from "../compliance/world.ts";
import { testDevices } from "./test-memory.ts";

/** Has this process and its children use them. */
export function useDoubles(devices: number): void {
  useCudaDouble();
  process.env["TENSOR_BUS_LIBNCCL"] = join(import.meta.dirname, "../../../native/build/doubles/libnccl.so");
  process.env["CUDA_DOUBLE_DEVICES"] = String(devices);
  testDevices.of = deviceOf;
}

/** The UUID of a device of the double, as `nvidia-smi -L` would write it. */
export function deviceOf(ordinal: number): string {
  const hex = Buffer.from(`cuda-double-dev${ordinal.toString(36)}`, "latin1").toString("hex");
  return `GPU-${hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5")}`;
}

/** What the compliance suite needs, where ranks of one process meet over a store, each by a transport of its own. */
export function subjectOf(name: string, transportOf: (rank: number) => Transport): Subject {
  return {
    name,
    capabilities: transportOf(0).capabilities,
    joint: true,
    async open(world) {
      const stores = memoryStores();
      const sessions = await Promise.all(
        Array.from({ length: world }, (_, rank) => transportOf(rank).open({ rank, world, store: stores() })),
      );
      return {
        sessions,
        async [Symbol.asyncDispose]() {
          await Promise.all(sessions.map((session) => session.close()));
        },
      };
    },
    openOne: (options) => transportOf(0).open({ ...options, store: memoryStores()() }),
  };
}
