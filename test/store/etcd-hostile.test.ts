/** What answers as etcd may be anything: answers without what they must have, and leases that no timer can keep. */
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { type EtcdStoreOptions, etcdStore } from "../../src/store/etcd-store.ts";

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** Answers each path by what `answers` has for it, else by an empty object; counts the requests. */
async function impostor(answers: Record<string, unknown>, options: Partial<EtcdStoreOptions> = {}) {
  const asked: Record<string, number> = {};
  const server = createServer((request, response) => {
    const path = request.url!;
    asked[path] = (asked[path] ?? 0) + 1;
    request.resume().on("end", () => response.end(JSON.stringify(answers[path] ?? {})));
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  cleanUps.push(() => server.close());
  const store = await etcdStore({ endpoints: [`http://127.0.0.1:${port}`], timeoutMs: 5000, ...options });
  cleanUps.push(() => store.close());
  return { store, asked };
}

const protocol = { code: "TB_STORE_PROTOCOL" };

describe("an etcd that answers otherwise", () => {
  it.each([
    {},
    { header: {}, responses: [] },
    { header: { revision: "7" } },
    { header: { revision: "seven" }, responses: [] },
    { header: { revision: 7 }, responses: [{}] },
    { header: { revision: "1".repeat(1_000_000) }, responses: [] },
  ])("without a revision or answers, in a wait: typed %#", async (answer) => {
    const { store } = await impostor({ "/v3/kv/txn": answer });
    await expect(store.wait(["key"], { timeoutMs: 2000 })).rejects.toMatchObject(protocol);
  });

  it.each([
    { kvs: 1 },
    { kvs: [null] },
    { kvs: [{ value: 5 }] },
    { kvs: [{ value: "" }] },
  ])("with no such values: typed %#", async (answer) => {
    const { store } = await impostor({});
    expect(await store.get("key")).toBeUndefined();
    const { store: lying } = await impostor({ "/v3/kv/range": answer });
    await expect(lying.get("key")).rejects.toMatchObject(protocol);
    await expect(lying.add("key", 1n)).rejects.toMatchObject(protocol);
  });

  it("with a lease that it does not name: typed", async () => {
    const { store } = await impostor({ "/v3/lease/grant": { TTL: "10" } });
    await expect(store.set("key", Buffer.of(1), { leased: true })).rejects.toMatchObject(protocol);
  });

  it("with a lease of a hundred days: renews it now and then, not all the time", async () => {
    const { store, asked } = await impostor({
      "/v3/lease/grant": { ID: "7", TTL: String(100 * 24 * 3600) },
      "/v3/lease/keepalive": { result: { TTL: String(100 * 24 * 3600) } },
    });
    await store.set("key", Buffer.of(1), { leased: true });
    await store.set("other", Buffer.of(1), { leased: true });
    for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1));
    expect(asked["/v3/lease/keepalive"]).toBeUndefined();
  });

  it.each([0, -1, Number.NaN, 30 * 24 * 3600])("takes no lease of %d seconds", async (leaseSeconds) => {
    await expect(etcdStore({ endpoints: ["http://127.0.0.1:1"], leaseSeconds })).rejects.toMatchObject({
      code: "TB_STORE_OPTIONS",
    });
  });
});
