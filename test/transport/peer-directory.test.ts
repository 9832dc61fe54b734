import { describe, expect, test } from "vitest";
import { Deadline } from "../../src/deadline.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import {
  addressKey,
  type DirectoryScope,
  encodeAddress,
  type PeerAddress,
  PeerDirectory,
} from "../../src/transport/peer-directory.ts";

const scope: DirectoryScope = {
  transport: "tcp",
  namespace: "job/1",
  generation: 3n,
  secrets: [Buffer.from("one"), Buffer.from("two")],
};

async function found(
  directory: PeerDirectory,
  ranks: readonly number[],
  timeoutMs = 20_000,
): Promise<Map<number, PeerAddress>> {
  const all = new Map<number, PeerAddress>();
  await directory.lookUp(ranks, new Deadline({ timeoutMs }), (rank, address) => all.set(rank, address));
  return all;
}

describe("peer directory", () => {
  test("finds what was published, names included, and asks only once", async () => {
    const stores = memoryStores();
    await new PeerDirectory(stores(), scope).publish(1, { host: "127.0.0.1", port: 1 });
    await new PeerDirectory(stores(), scope).publish(2, { host: "localhost", port: 2 });
    const reader = new PeerDirectory(stores(), scope);
    const addresses = await found(reader, [1, 2]);
    expect(addresses.get(1)).toEqual({ host: "127.0.0.1", port: 1 });
    expect(addresses.get(2)?.host).toMatch(/^(127\.0\.0\.1|::1)$/);
    expect(await found(reader, [1, 2])).toEqual(new Map());
    reader.forget(1);
    expect([...(await found(reader, [1, 2])).keys()]).toEqual([1]);
  });

  test("waits for a rank that publishes later, and names those that never do", async () => {
    const stores = memoryStores();
    const reader = new PeerDirectory(stores(), scope);
    const waiting = found(reader, [5]);
    await new PeerDirectory(stores(), scope).publish(5, { host: "127.0.0.1", port: 9 });
    expect((await waiting).get(5)?.port).toBe(9);
    await expect(found(reader, [5, 6, 7], 50)).rejects.toMatchObject({
      code: "TB_TIMEOUT",
      details: { rank: 6, ranks: [6, 7] },
    });
  });

  test("says of a name that is not known here whose it is, and what to do", async () => {
    const stores = memoryStores();
    await new PeerDirectory(stores(), scope).publish(4, { host: "no..name", port: 1 });
    await expect(found(new PeerDirectory(stores(), scope), [4])).rejects.toMatchObject({
      code: "TB_CONNECT",
      message: expect.stringMatching(/rank 4 is at no\.\.name, .*advertise an IP address/),
      details: { rank: 4, host: "no..name" },
    });
  });

  test("refuses a record of another secret, rank or generation, and one that is no address", async () => {
    const store = memoryStores()();
    const address = { host: "127.0.0.1", port: 1 };
    const records = [
      encodeAddress({ ...scope, secrets: [Buffer.from("three")] }, 1, address),
      encodeAddress(scope, 2, address),
      encodeAddress({ ...scope, generation: 2n }, 1, address),
    ];
    for (const record of records) {
      await store.set(addressKey(scope, 1), record);
      await expect(found(new PeerDirectory(store, scope), [1])).rejects.toMatchObject({
        code: "TB_AUTH",
        details: { rank: 1 },
      });
    }
    for (const text of ["", "null", "[]", '{"host":"127.0.0.1","port":0}', "\xff{"]) {
      await store.set(addressKey(scope, 1), Buffer.from(`${text} `));
      await expect(found(new PeerDirectory(store, scope), [1])).rejects.toMatchObject({
        code: "TB_PROTOCOL",
      });
    }
    await store.set(
      addressKey(scope, 1),
      encodeAddress({ ...scope, secrets: [scope.secrets[1]!] }, 1, address),
    );
    expect((await found(new PeerDirectory(store, scope), [1])).size).toBe(1);
  });

  test("withdraws its own record only, and bears a store that is closed", async () => {
    const stores = memoryStores();
    const store = stores();
    const [first, second] = [new PeerDirectory(store, scope), new PeerDirectory(store, scope)];
    await first.publish(1, { host: "127.0.0.1", port: 1 });
    await second.publish(1, { host: "127.0.0.1", port: 1 });
    await first.withdraw();
    expect(await store.get(addressKey(scope, 1))).toBeDefined();
    await second.withdraw();
    expect(await store.get(addressKey(scope, 1))).toBeUndefined();
    await first.publish(1, { host: "127.0.0.1", port: 1 });
    await store.close();
    await first.withdraw();
    expect(await stores().get(addressKey(scope, 1))).toBeDefined();
  });
});
