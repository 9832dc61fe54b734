/** cuda-ipc as one of several transports of a session, on the double of libcuda: by where the tensors of a batch lie. */
import { expect, test } from "vitest";
import { createExecutor, type Execution } from "../../src/exec/executor.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { select } from "../../src/transport/selection.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { cudaIpc } from "../../transports/cuda-ipc/index.ts";
import { shm } from "../../transports/shm/index.ts";
import { doubleDevice, missingDevice, useCudaDouble } from "../doubles/cuda/index.ts";
import { columnsToRows } from "./compliance/data.ts";
import { outcomeOf } from "./compliance/world.ts";
import { allocate, type TestMemory, type TestMemoryKind } from "./kit/test-memory.ts";

useCudaDouble();

async function within(body: (sessions: readonly TransportSession[]) => Promise<void>): Promise<void> {
  const stores = memoryStores();
  const transport = () => select([cudaIpc({ device: doubleDevice }), shm()]);
  const sessions = await Promise.all(
    [0, 1].map((rank) => transport().open({ rank, world: 2, store: stores() })),
  );
  await body(sessions);
  for (const session of sessions) await session.close();
}

async function prepare(
  sessions: readonly TransportSession[],
  places: readonly (readonly [source: TestMemoryKind, target: TestMemoryKind])[],
): Promise<Promise<Execution>[]> {
  const plan = await planTransfer(columnsToRows(8, 8, {}, [0, 1]).input);
  return sessions.map((session, rank) => {
    const [source, target] = places[rank]!.map((kind) => allocate(kind, 4096)) as [TestMemory, TestMemory];
    session.register(source.memory);
    session.register(target.memory);
    const at = ({ memory }: TestMemory) => ({ memory, offset: 0n });
    const tensors = new Map([[0, { source: at(source), target: at(target) }]]);
    return createExecutor(session).prepare(plan, { key: places.join(), tensors });
  });
}

test("a batch in GPU memory takes cuda-ipc, one in host memory shm, in one session", () =>
  within(async (sessions) => {
    for (const [kind, transport] of [
      ["cuda", "cuda-ipc"],
      ["host", "shm"],
    ] as const) {
      const places = [0, 1].map(() => [kind, kind] as const);
      const executions = await Promise.all(await prepare(sessions, places));
      await Promise.all(executions.map((execution) => execution.run()));
      for (const { stats } of executions) expect([...stats.peers.values()]).toMatchObject([{ transport }]);
    }
  }));

test("one rank in GPU memory and one in host memory is TB_UNSUPPORTED at both, with both kinds", () =>
  within(async (sessions) => {
    const preparing = await prepare(sessions, [
      ["cuda", "cuda"],
      ["host", "host"],
    ]);
    for (const settled of await Promise.allSettled(preparing)) {
      expect(settled).toMatchObject({
        status: "rejected",
        reason: {
          code: "TB_UNSUPPORTED",
          message: expect.stringMatching(/CUDA memory .* memory of the host/),
        },
      });
    }
  }));

test("one rank's tensors in both kinds of memory is TB_UNSUPPORTED there", () =>
  within(async ([session]) => {
    const [mixed] = await prepare([session!], [["cuda", "host"]]);
    expect(await outcomeOf(mixed!)).toMatchObject({ code: "TB_UNSUPPORTED" });
  }));

test("a session has one GPU", () => {
  expect(() => select([cudaIpc({ device: doubleDevice }), cudaIpc({ device: missingDevice })])).toThrow(
    TypeError,
  );
});
