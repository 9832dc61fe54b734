/** cuda-ipc on a test double of libcuda (native/test/doubles/cuda): no GPU takes part. */
import { expect, test } from "vitest";
import { DeviceMemory, HostMemory } from "../../src/memory/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { type CudaIpcTransportOptions, cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { doubleDevice, missingDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { testTransport } from "./compliance/suite.ts";
import type { World } from "./compliance/world.ts";

useCudaDouble();

const device = doubleDevice;

async function open(world: number, options: Partial<CudaIpcTransportOptions> = {}): Promise<World> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  for (let rank = 0; rank < world; rank++) {
    sessions.push(await cudaIpc({ device, ...options }).open({ rank, world, store: stores() }));
  }
  return {
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) await session.close();
    },
  };
}

const { capabilities } = cudaIpc({ device });
testTransport({
  name: "cuda-ipc (double)",
  capabilities,
  open,
  openOne: (options) => cudaIpc({ device }).open({ ...options, store: memoryStores()() }),
});

test("a device that is not there is TB_DEVICE, with its UUID", async () => {
  const opening = cudaIpc({ device: missingDevice }).open({ rank: 0, world: 1, store: memoryStores()() });
  await expect(opening).rejects.toMatchObject({
    code: "TB_DEVICE",
    message: expect.stringContaining(missingDevice),
  });
  await expect(
    cudaIpc({ device: "0" }).open({ rank: 0, world: 1, store: memoryStores()() }),
  ).rejects.toMatchObject({
    code: "TB_DEVICE",
  });
});

test("memory that is none of the device is refused, whatever it says it is", async () => {
  await using world = await open(1);
  const host = HostMemory.allocate(4096);
  const disguised = DeviceMemory.over(device, host.address, 4096);
  expect(() => world.sessions[0]!.register(disguised)).toThrow(
    expect.objectContaining({ code: "TB_REGION" }),
  );
  expect(() => world.sessions[0]!.register(host)).toThrow(
    expect.objectContaining({ code: "TB_UNSUPPORTED" }),
  );
});
