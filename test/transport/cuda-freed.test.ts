/** GPU memory that its owner frees too early, on the double of libcuda; it spoils CUDA for the rest of the process. */
import { expect, test } from "vitest";
import { createExecutor } from "../../src/exec/executor.ts";
import { cudaFree, parseUuid } from "../../src/ffi/cuda.ts";
import { DeviceMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { doubleDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { columnsToRows } from "./compliance/data.ts";
import { outcomeOf } from "./compliance/world.ts";

test("a round on memory that was freed is TB_CUDA, and sessions end in order", async () => {
  useCudaDouble();
  const stores = memoryStores();
  const sessions = await Promise.all(
    [0, 1].map((rank) => cudaIpc({ device: doubleDevice }).open({ rank, world: 2, store: stores() })),
  );
  const plan = await planTransfer(columnsToRows(16, 16, {}, [0, 1]).input);
  const memories = sessions.map(() => DeviceMemory.allocate(doubleDevice, 8192));
  const executions = await Promise.all(
    sessions.map((session, rank) => {
      const memory = memories[rank]!;
      session.register(memory);
      const tensors = new Map([[0, { source: { memory, offset: 0n }, target: { memory, offset: 4096n } }]]);
      return createExecutor(session).prepare(plan, { key: "freed", tensors });
    }),
  );
  expect(await Promise.all(executions.map((execution) => outcomeOf(execution.run())))).toEqual([
    "done",
    "done",
  ]);
  cudaFree(parseUuid(doubleDevice), memories[0]!.address);
  const outcomes = await Promise.all(executions.map((execution) => outcomeOf(execution.run())));
  expect(outcomes).toMatchObject([{ code: "TB_CUDA" }, { code: "TB_CUDA" }]);
  for (const session of sessions) await session.close();
});
