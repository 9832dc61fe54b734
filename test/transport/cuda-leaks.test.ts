/** What rounds and sessions leave behind, on the double of libcuda; alone in its process, so that all there is, is its own. */
import { readdirSync } from "node:fs";
import { expect, test } from "vitest";
import { cudaInfo, parseUuid } from "../../src/ffi/cuda.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { doubleDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { columnsToRows } from "./compliance/data.ts";
import { prepareCase } from "./compliance/world.ts";

useCudaDouble();

/** Bytes of the GPU in use, and open files: every stream, allocation and session has some. */
function held() {
  const { free, total } = cudaInfo(parseUuid(doubleDevice));
  return { bytes: Number(total - free), files: readdirSync("/proc/self/fd").length };
}

function expectNoMoreThan(before: ReturnType<typeof held>): void {
  const now = held();
  expect(now.bytes).toBeLessThanOrEqual(before.bytes);
  expect(now.files).toBeLessThanOrEqual(before.files);
}

test("nothing stays behind: 1,000 rounds, and sessions that come and go", async () => {
  const transfer = columnsToRows(16, 16, {}, [0, 1]);
  const keeper = DeviceMemory.allocate(doubleDevice, 64); // so that the GPU's worker stays
  const before = held();
  for (let turn = 0; turn < 5; turn++) {
    const stores = memoryStores();
    const sessions = await Promise.all(
      [0, 1].map((rank) => cudaIpc({ device: doubleDevice }).open({ rank, world: 2, store: stores() })),
    );
    const prepared = await prepareCase(sessions, transfer);
    await prepared.round();
    const within = held();
    for (let round = 0; round < 200; round++) {
      await Promise.all(prepared.executions.map((execution) => execution.run()));
    }
    expectNoMoreThan(within);
    await prepared[Symbol.asyncDispose]();
    for (const session of sessions) await session.close();
  }
  await expect.poll(() => held().files).toBeLessThanOrEqual(before.files);
  expectNoMoreThan(before);
  keeper.close();
});
