import { describe, expect, it } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import { type IgnoredRecord, type SignedStoreOptions, signedStore } from "../../src/store/signed.ts";

const oldSecret = Buffer.from("an old secret of the tests");
const newSecret = Buffer.from("a new secret of the tests");
const value = Buffer.from("value");

/** One store underneath, and clients of it: plain, and signed in different ways. */
function setUp() {
  const stores = memoryStores();
  const ignored: IgnoredRecord[] = [];
  const plain = stores({ namespace: "job" });
  const signed = (options: Partial<SignedStoreOptions> = {}, namespace = "job") =>
    signedStore(stores({ namespace }), {
      secrets: [oldSecret],
      onIgnored: (record) => ignored.push(record),
      ...options,
    });
  return { plain, signed, ignored, store: signed() };
}

describe("signed records", () => {
  it("are not believed once a single bit of them differs", async () => {
    const { plain, store, ignored } = setUp();
    await store.set("key", value);
    const record = (await plain.get("key"))!;
    for (let at = 0; at < record.length; at += 1) {
      const forged = Uint8Array.from(record);
      forged[at]! ^= 1 << (at % 8);
      await plain.set("key", forged);
      expect(await store.get("key"), `byte ${at}`).toBeUndefined();
    }
    await plain.set("key", record.subarray(0, record.length - 1));
    expect(await store.get("key")).toBeUndefined();
    expect(ignored).toHaveLength(record.length + 1);
    await plain.set("key", record);
    expect(await store.get("key")).toEqual(value);
  });

  it("count for one key, one namespace and one generation", async () => {
    const { plain, signed, store, ignored } = setUp();
    await store.set("key", value);
    const record = (await plain.get("key"))!;
    await plain.set("other", record);
    expect(await store.get("other")).toBeUndefined();
    const elsewhere = signed({}, "another job");
    await elsewhere.set("key", value);
    const later = signed({ generation: 1n });
    expect(await later.get("key")).toBeUndefined();
    await later.set("key", value);
    expect(await store.get("key")).toBeUndefined();
    expect(ignored.map(({ key, reason }) => [key, reason])).toEqual([
      ["other", "signature"],
      ["key", "generation"],
      ["key", "generation"],
    ]);
    expect(ignored[0]!.namespace).toBe("job");
  });

  it("of plain clients are as if they were not there", async () => {
    const { plain, store, ignored } = setUp();
    for (const forged of ["x", "41", "TBS1", `TBS1${"\0".repeat(100)}`]) {
      await plain.set("key", Buffer.from(forged));
      expect(await store.get("key")).toBeUndefined();
      expect(await store.delete("key")).toBe(false);
      expect(await plain.get("key")).toBeUndefined();
      await plain.set("key", Buffer.from(forged));
      expect(await store.compareAndSet("key", Buffer.from(forged), value)).toEqual({
        swapped: false,
        stored: undefined,
      });
      expect((await store.compareAndSet("key", undefined, value)).swapped).toBe(true);
      expect(await store.get("key")).toEqual(value);
    }
    await plain.set("counter", Buffer.from("41"));
    expect(await store.add("counter", 1n)).toBe(1n);
    expect(ignored.map(({ reason }) => reason)).toContain("form");
    expect(ignored.map(({ reason }) => reason)).toContain("signature");
  });

  it("are waited for until they are genuine", async () => {
    const { plain, store, ignored } = setUp();
    await plain.set("key", Buffer.from("forged"));
    await expect(store.wait(["key"], { timeoutMs: 80 })).rejects.toMatchObject({ code: "TB_TIMEOUT" });
    const waiting = store.wait(["key", "second"]);
    await store.set("second", value);
    await expect.poll(() => ignored.length).toBeGreaterThan(3);
    await store.set("key", value);
    await waiting;
  });

  it("of both secrets count during a rotation, and of the old one not after it", async () => {
    const { signed } = setUp();
    const before = signed();
    const during = signed({ secrets: [oldSecret, newSecret] });
    const switched = signed({ secrets: [newSecret, oldSecret] });
    const after = signed({ secrets: [newSecret] });
    await before.set("old", value);
    await switched.set("new", value);
    expect([await during.get("old"), await during.get("new")]).toEqual([value, value]);
    expect([await switched.get("old"), await switched.get("new")]).toEqual([value, value]);
    expect([await after.get("old"), await after.get("new")]).toEqual([undefined, value]);
    expect(await before.get("new")).toBeUndefined();
  });

  it("tell writers of the same value apart, and can be replaced by value", async () => {
    const { plain, store } = setUp();
    await store.set("key", value);
    const first = await plain.get("key");
    expect((await store.compareAndSet("key", value, value)).swapped).toBe(true);
    expect(await plain.get("key")).not.toEqual(first);
    expect(store.capabilities.exactSwap).toBe(true);
    expect(store.capabilities.maxValueBytes).toBe(plain.capabilities.maxValueBytes - 60);
  });

  it("need secrets that are some", () => {
    const { plain } = setUp();
    const options = expect.objectContaining({ code: "TB_STORE_OPTIONS" });
    expect(() => signedStore(plain, { secrets: [] })).toThrow(options);
    expect(() => signedStore(plain, { secrets: [oldSecret, Buffer.alloc(15)] })).toThrow(options);
    expect(() => signedStore(plain, { secrets: [oldSecret], generation: -1n })).toThrow(options);
    expect(() => signedStore(plain, { secrets: [oldSecret], generation: 2n ** 64n })).toThrow(options);
  });
});
