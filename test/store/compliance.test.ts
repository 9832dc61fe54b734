import { createHash } from "node:crypto";
import { describe, it } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import { signedStore } from "../../src/store/signed.ts";
import type { Store } from "../../src/store/store.ts";
import { serveTcpStore } from "../../src/store/tcp-server.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { type StoreFixture, storeCompliance } from "./kit/compliance.ts";
import { etcdFixture, etcdMissing } from "./kit/etcd-server.ts";

const secrets = [createHash("sha256").update("a secret of the tests").digest()];

async function memory(): Promise<StoreFixture> {
  const stores = memoryStores();
  return { connect: async (namespace = "") => stores({ namespace }), tearDown: async () => {} };
}

async function tcp(): Promise<StoreFixture> {
  const server = await serveTcpStore();
  const { host, port } = server;
  return {
    connect: (namespace) => tcpStore({ host, port, ...(namespace === undefined ? {} : { namespace }) }),
    awaited: async () => server.stats.awaitedKeys,
    tearDown: () => server.close(),
  };
}

/** The same fixture with clients that sign. */
async function signed(setUp: () => Promise<StoreFixture>): Promise<StoreFixture> {
  const fixture = await setUp();
  const sign = (store: Store) => signedStore(store, { secrets, generation: 7n });
  return { ...fixture, connect: async (namespace) => sign(await fixture.connect(namespace)) };
}

storeCompliance("memory", memory);
storeCompliance("tcp", tcp);
storeCompliance("signed memory", () => signed(memory));
storeCompliance("signed tcp", () => signed(tcp));

if (etcdMissing === undefined) {
  storeCompliance("etcd", etcdFixture);
  storeCompliance("signed etcd", () => signed(etcdFixture));
} else {
  describe("etcd as a store", () => it.skip(etcdMissing!, () => {}));
}
