/** cuda-ipc on a test double of libcuda (test/doubles/cuda): no GPU takes part. */
import { readdirSync } from "node:fs";
import { expect, test } from "vitest";
import { cudaInfo, parseUuid } from "../../src/ffi/cuda.ts";
import { DeviceMemory, HostMemory } from "../../src/memory/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { type CudaIpcTransportOptions, cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { doubleDevice, missingDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { testTransport } from "./compliance.ts";
import { columnsToRows } from "./compliance-data.ts";
import { prepareCase, type World } from "./world.ts";

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

test("nothing stays behind: 1,000 rounds, and sessions that come and go", async () => {
  const holds = () => ({
    free: cudaInfo(parseUuid(device)).free,
    files: readdirSync("/proc/self/fd").length,
  });
  const transfer = columnsToRows(16, 16, {}, [0, 1]);
  const keeper = DeviceMemory.allocate(device, 64); // so that the worker stays
  const before = holds();
  for (let turn = 0; turn < 5; turn++) {
    await using world = await open(2);
    const prepared = await prepareCase(world.sessions, transfer);
    await prepared.round();
    const within = holds();
    for (let round = 0; round < 200; round++) {
      await Promise.all(prepared.executions.map((execution) => execution.run()));
    }
    expect(holds()).toEqual(within);
    await prepared[Symbol.asyncDispose]();
  }
  await expect.poll(holds).toEqual(before);
  keeper.close();
});
