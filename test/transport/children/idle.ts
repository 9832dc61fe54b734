/** An open session does not keep a program alive; what is awaited on it does. Prints what happened before it ends. */
import { TensorBusError } from "../../../src/errors.ts";
import { DeviceMesh, Replicate } from "../../../src/layout/index.ts";
import { HostMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { memoryStores } from "../../../src/store/memory-store.ts";
import { memory } from "../../../transports/memory/index.ts";
import { tcp } from "../../../transports/tcp/index.ts";

const store = memoryStores()();
await tcp().open({ rank: 0, world: 2, store });
const session = await memory().open({ rank: 0, world: 2, store });
const only = (rank: number) => ({ mesh: new DeviceMesh([1], { ranks: [rank] }), placements: [Replicate()] });
const plan = await planTransfer({
  pairs: { only: { source: only(0), target: only(1) } },
  tensors: [{ name: "alone", pair: "only", shape: [4], dtype: "uint8" }],
});
const source = HostMemory.allocate(4);
session.register(source);
try {
  await session.prepare(plan.program(0), [{ tensor: 0, source: { memory: source, offset: 0n } }], {
    key: "alone",
    timeoutMs: 60,
  });
} catch (error) {
  console.log(error instanceof TensorBusError ? error.code : error);
}
