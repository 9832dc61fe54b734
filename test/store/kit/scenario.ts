import { tcpStore } from "../../../src/store/tcp-store.ts";

const bytes = (text: string) => Buffer.from(text);

/** Everything that our client says on the wire, in an order that is the same each time; for recordings and their replay. */
export async function everyOperation(port: number): Promise<unknown[]> {
  await using store = await tcpStore({ host: "127.0.0.1", port, namespace: "scenario" });
  const results: unknown[] = [];
  const say = async (result: Promise<unknown>) => {
    results.push(await result.catch((error: { code?: string }) => error.code));
  };
  await say(store.get("key"));
  await say(store.set("key", bytes("value")));
  await say(store.get("key"));
  await say(store.compareAndSet("cas", bytes("old"), bytes("new")));
  await say(store.compareAndSet("cas", undefined, bytes("first")));
  await say(store.compareAndSet("cas", bytes("other"), bytes("second")));
  await say(store.compareAndSet("cas", bytes("first"), bytes("second")));
  await say(store.add("counter", 7n));
  await say(store.add("counter", -9n));
  await say(store.add("key", 1n));
  await say(store.wait(["key", "cas", "counter"]));
  await say(store.wait(["key", "absent"], { timeoutMs: 1000 }));
  const waiting = store.wait(["key", "later"]);
  await say(store.set("later", bytes("now")));
  await say(waiting);
  await say(store.delete("cas"));
  await say(store.delete("cas"));
  return results;
}
