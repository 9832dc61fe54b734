import { expect, test, vi } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import { memory } from "../../transports/memory/index.ts";
import { columnsToRows } from "./compliance/data.ts";
import { prepareCase } from "./compliance/world.ts";

const calls = vi.hoisted(() => ({ count: 0 }));
vi.mock("../../src/ffi/session.ts", async (importOriginal) => {
  const original = await importOriginal<Record<string, unknown>>();
  const counted = Object.entries(original).map(([name, value]) => {
    if (typeof value !== "function") return [name, value];
    return [
      name,
      (...args: unknown[]) => {
        calls.count += 1;
        return (value as (...args: unknown[]) => unknown)(...args);
      },
    ];
  });
  return Object.fromEntries(counted);
});

/** Calls into native code of one round of both ranks. */
async function callsOfRound(rows: number): Promise<{ readonly buckets: number; readonly calls: number }> {
  const transport = memory();
  const store = memoryStores()();
  const sessions = await Promise.all([0, 1].map((rank) => transport.open({ rank, world: 2, store })));
  const prepared = await prepareCase(sessions, columnsToRows(rows, 64, { bucketBytes: 4096 }, [0, 1]));
  await prepared.round();
  calls.count = 0;
  await prepared.round();
  const result = { buckets: Math.ceil((rows * 64 * 4) / 4096), calls: calls.count };
  for (const session of sessions) await session.close();
  return result;
}

test("the calls of a round do not grow with its buckets", async () => {
  const [few, many] = [await callsOfRound(64), await callsOfRound(4096)];
  expect(many.buckets).toBe(64 * few.buckets);
  // A post each, and an event each that is read once more than it is there.
  expect(few.calls).toBeLessThanOrEqual(6);
  expect(many.calls).toBeLessThanOrEqual(6);
});
