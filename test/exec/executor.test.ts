import { expect, test } from "vitest";
import { createExecutor } from "../../src/exec/executor.ts";
import { DeviceMesh, planTransfer, Replicate } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { memory } from "../../transports/memory/index.ts";

test.each(["bytes", "gather"] as const)("a transport that fuses only %s is refused", async (fuses) => {
  await using session = await memory().open({ rank: 0, world: 1, store: memoryStores()() });
  const lesser: Pick<TransportSession, "rank" | "capabilities"> = {
    rank: session.rank,
    capabilities: { ...session.capabilities, fuses },
  };
  const mesh = new DeviceMesh([1]);
  const plan = await planTransfer({
    pairs: {
      only: { source: { mesh, placements: [Replicate()] }, target: { mesh, placements: [Replicate()] } },
    },
    tensors: [{ name: "empty", pair: "only", shape: [0], dtype: "float32" }],
  });
  const prepared = createExecutor(lesser as TransportSession).prepare(plan, {
    key: "lesser",
    tensors: new Map(),
  });
  await expect(prepared).rejects.toMatchObject({ code: "TB_UNSUPPORTED", details: { fuses } });
});
