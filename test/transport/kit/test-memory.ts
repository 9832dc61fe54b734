/** Memory of any kind for tests: bytes that are filled and compared here, and where a transport moves them. */
import { DeviceMemory, HostMemory, type Memory, SharedMemory } from "../../../src/memory/index.ts";
import type { TransportCapabilities } from "../../../src/transport/transport.ts";
import { doubleDevice } from "../../doubles/cuda/index.ts";

export interface TestMemory {
  readonly memory: Memory;
  /** The memory itself, or a copy of it: `push` and `pull` make them the same. */
  readonly bytes: Uint8Array;
  /** What was written to `bytes` is in the memory. */
  push(): void;
  /** `bytes` shows what the memory holds. */
  pull(): void;
  close(): void;
}

export type TestMemoryKind = "host" | "shared" | "cuda";

/** The kind of memory that tests take where it does not matter which, if not that of the host where there is a choice. */
export const preferredMemory: { kind?: TestMemoryKind } = {};

/** The kind of memory that a test of an implementation takes where it does not matter which. */
export function kindOf({ memory }: TransportCapabilities): TestMemoryKind {
  return preferredMemory.kind ?? (memory.includes("host") ? "host" : "cuda");
}

/** On which GPU a rank's memory lies: all of them on one, unless a test says otherwise. */
export const testDevices = { of: (_rank: number): string => process.env["TEST_CUDA_DEVICE"] ?? doubleDevice };

export function allocate(
  kind: TestMemoryKind,
  bytes: number,
  device: string = testDevices.of(0),
): TestMemory {
  if (kind === "cuda") {
    const memory = DeviceMemory.allocate(device, bytes);
    const mirror = new Uint8Array(bytes);
    return {
      memory,
      bytes: mirror,
      push: () => memory.write(mirror),
      pull: () => {
        mirror.fill(0); // what is compared came from there
        memory.read(mirror);
      },
      close: () => memory.close(),
    };
  }
  const memory = kind === "host" ? HostMemory.allocate(bytes) : SharedMemory.create(bytes);
  return {
    memory,
    bytes: memory.view(Uint8Array),
    push: () => {},
    pull: () => {},
    close: () => memory.close(),
  };
}
