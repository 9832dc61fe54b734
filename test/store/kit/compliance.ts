/** What every store must do, whatever it is made of. An implementation's own test is its set-up and its own business. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ErrorCode } from "../../../src/errors.ts";
import type { SetOptions, Store, StoreCallOptions } from "../../../src/store/store.ts";

export interface StoreFixture {
  /** A new client of one shared store. The suite closes it. */
  connect(namespace?: string): Promise<Store>;
  /** Waits that are parked in the store at this moment, if that can be told. */
  awaited?(): Promise<number>;
  tearDown(): Promise<void>;
}

const bytes = (text: string) => new Uint8Array(Buffer.from(text));
const text = (value: Uint8Array | undefined) =>
  value === undefined ? undefined : Buffer.from(value).toString();
const all256 = Uint8Array.from({ length: 256 }, (_, index) => index);

/** What an operation must fail with. */
function failure(code: ErrorCode) {
  return expect.objectContaining({ name: "TensorBusError", code });
}

/** Every member that takes options, each as a call that succeeds (`wait` for a key that is set before). */
const operations: Record<string, (store: Store, options?: StoreCallOptions) => Promise<unknown>> = {
  get: (store, options) => store.get("op", options),
  set: (store, options) => store.set("op", bytes("1"), options),
  compareAndSet: (store, options) => store.compareAndSet("op-cas", undefined, bytes("1"), options),
  add: (store, options) => store.add("op-counter", 1n, options),
  wait: (store, options) => store.wait(["op"], options),
  delete: (store, options) => store.delete("op-other", options),
};

/** `setUpMs`: how long the set-up may take, if that is longer than usual. */
export function storeCompliance(name: string, setUp: () => Promise<StoreFixture>, setUpMs?: number): void {
  describe(`${name} as a store`, () => {
    let fixture: StoreFixture;
    let store: Store;
    const clients: Store[] = [];
    const client = async (namespace?: string) => {
      const connected = await fixture.connect(namespace);
      clients.push(connected);
      return connected;
    };

    beforeAll(async () => {
      fixture = await setUp();
      store = await client();
    }, setUpMs);
    afterAll(async () => {
      await Promise.all(clients.map((each) => each.close()));
      await fixture?.tearDown();
    });

    describe("values", () => {
      it("has nothing at first", async () => {
        expect(await store.get("nothing")).toBeUndefined();
        expect(await store.delete("nothing")).toBe(false);
      });

      it("gives back what was set, to every client, until it is deleted", async () => {
        const other = await client();
        await store.set("value", bytes("one"));
        expect(text(await other.get("value"))).toBe("one");
        await other.set("value", bytes("two"));
        expect(text(await store.get("value"))).toBe("two");
        expect(await store.delete("value")).toBe(true);
        expect(await other.get("value")).toBeUndefined();
        expect(await other.delete("value")).toBe(false);
      });

      it("keeps every byte of keys and values", async () => {
        const keys = [
          "\0",
          " ",
          "/",
          "a/b",
          "%2F",
          "__proto__",
          "ü\u{1f600}\n",
          "a\u0000b",
          "k".repeat(1000),
        ];
        await Promise.all(keys.map((key, index) => store.set(key, Uint8Array.of(...all256, index))));
        for (const [index, key] of keys.entries()) {
          expect([...(await store.get(key))!], JSON.stringify(key)).toEqual([...all256, index]);
        }
        await store.wait(keys);
        for (const key of keys) expect(await store.delete(key)).toBe(true);
      });

      it("takes the value as it is at the call, and gives away copies", async () => {
        const value = bytes("before");
        const set = store.set("copy", value);
        value.fill(0);
        await set;
        (await store.get("copy"))!.fill(0);
        expect(text(await store.get("copy"))).toBe("before");
      });

      it("takes values and keys up to its limits, and none beyond", async () => {
        const { maxValueBytes, maxKeyBytes } = store.capabilities;
        const large = new Uint8Array(Math.min(maxValueBytes, 8 * 2 ** 20)).fill(7);
        large.set([1, 2, 3], large.length - 3);
        await store.set("large", large);
        expect(Buffer.compare((await store.get("large"))!, large)).toBe(0);
        const long = "k".repeat(maxKeyBytes);
        await store.set(long, bytes("1"));
        expect(text(await store.get(long))).toBe("1");
        await Promise.all([store.delete("large"), store.delete(long)]);
        const tooLarge = {
          length: maxValueBytes + 1,
          __proto__: Uint8Array.prototype,
        } as unknown as Uint8Array;
        await expect(store.set("large", tooLarge)).rejects.toEqual(failure("TB_STORE_VALUE"));
        for (const key of [`${long}k`, "ü".repeat(maxKeyBytes / 2 + 1), "", "half \ud800 a character"]) {
          await expect(store.set(key, bytes("1"))).rejects.toEqual(failure("TB_STORE_VALUE"));
          await expect(store.get(key)).rejects.toEqual(failure("TB_STORE_VALUE"));
          await expect(store.wait([key])).rejects.toEqual(failure("TB_STORE_VALUE"));
        }
      });

      it("refuses empty values", async () => {
        await expect(store.set("empty", new Uint8Array())).rejects.toEqual(failure("TB_STORE_VALUE"));
        const swap = store.compareAndSet("empty", undefined, new Uint8Array());
        await expect(swap).rejects.toEqual(failure("TB_STORE_VALUE"));
        expect(await store.get("empty")).toBeUndefined();
      });

      it("keeps namespaces apart", async () => {
        const [one, other] = [await client("one"), await client("other")];
        await one.set("key", bytes("1"));
        await one.add("counter", 5n);
        expect(await other.get("key")).toBeUndefined();
        expect(await store.get("key")).toBeUndefined();
        expect(await other.add("counter", 1n)).toBe(1n);
        expect(await other.delete("key")).toBe(false);
        expect((await other.compareAndSet("key", undefined, bytes("2"))).swapped).toBe(true);
        await expect(store.wait(["key"], { timeoutMs: 20 })).rejects.toEqual(failure("TB_TIMEOUT"));
        expect([text(await one.get("key")), text(await other.get("key"))]).toEqual(["1", "2"]);
        expect([one.namespace, other.namespace]).toEqual(["one", "other"]);
      });
    });

    describe("compareAndSet", () => {
      it("swaps only what is expected, and says what stands", async () => {
        const swap = async (expected: string | undefined, desired: string) => {
          const result = await store.compareAndSet(
            "cas",
            expected === undefined ? undefined : bytes(expected),
            bytes(desired),
          );
          return [result.swapped, text(result.stored)];
        };
        expect(await swap("a", "b")).toEqual([false, undefined]);
        expect(await swap("a", "a")).toEqual([false, undefined]);
        expect(await swap(undefined, "a")).toEqual([true, "a"]);
        expect(await swap(undefined, "b")).toEqual([false, "a"]);
        expect(await swap("b", "c")).toEqual([false, "a"]);
        expect(await swap("a", "a")).toEqual([true, "a"]);
        expect(await swap("a", "b")).toEqual([true, "b"]);
        // What is desired stands there already: nobody swapped it just now.
        expect(await swap("a", "b")).toEqual([false, "b"]);
        expect(await swap(undefined, "b")).toEqual([false, "b"]);
        expect(text(await store.get("cas"))).toBe("b");
      });

      it("lets exactly one of a hundred win", async () => {
        const racers = await Promise.all(Array.from({ length: 10 }, () => client()));
        const results = await Promise.all(
          Array.from({ length: 100 }, (_, index) =>
            racers[index % 10]!.compareAndSet("race", undefined, bytes(`racer ${index}`)),
          ),
        );
        const winner = results.findIndex(({ swapped }) => swapped);
        expect(results.filter(({ swapped }) => swapped)).toHaveLength(1);
        expect(new Set(results.map(({ stored }) => text(stored)))).toEqual(new Set([`racer ${winner}`]));
      });

      it("tells writers of the same bytes apart where it says so", async () => {
        const racers = store.capabilities.exactSwap
          ? await Promise.all(Array.from({ length: 8 }, () => client()))
          : [store];
        const swaps = racers.map((racer) => racer.compareAndSet("same", undefined, bytes("lock")));
        const results = await Promise.all(swaps);
        expect(results.filter(({ swapped }) => swapped)).toHaveLength(1);
      });
    });

    describe("add", () => {
      it("counts from 0 in decimal text, both ways", async () => {
        expect(await store.add("count", 5n)).toBe(5n);
        expect(await store.add("count", -7n)).toBe(-2n);
        expect(text(await store.get("count"))).toBe("-2");
        expect(await store.add("count", 2n ** 63n - 1n)).toBe(2n ** 63n - 3n);
        expect(await store.add("count", 0n)).toBe(2n ** 63n - 3n);
        await store.set("count", bytes("41"));
        expect(await store.add("count", 1n)).toBe(42n);
      });

      it("refuses what is no counter, and what leaves 64 bits", async () => {
        await store.set("words", bytes("many"));
        await expect(store.add("words", 1n)).rejects.toEqual(failure("TB_STORE_VALUE"));
        await store.add("full", 2n ** 63n - 1n);
        await expect(store.add("full", 1n)).rejects.toEqual(failure("TB_STORE_VALUE"));
        expect(text(await store.get("words"))).toBe("many");
        expect(text(await store.get("full"))).toBe(String(2n ** 63n - 1n));
      });

      it("loses no addition of eight clients", async () => {
        const adders = await Promise.all(Array.from({ length: 8 }, () => client()));
        const sums = await Promise.all(
          adders.flatMap((adder, index) =>
            Array.from({ length: 10 }, () => adder.add("sum", BigInt(index), { timeoutMs: 100_000 })),
          ),
        );
        expect(sums).toContain(280n);
        expect(await store.add("sum", 0n)).toBe(280n);
      });
    });

    describe("wait", () => {
      it("returns at once for keys that exist, and for none", async () => {
        await store.set("here", bytes("1"));
        await store.wait(["here", "here"]);
        await store.wait([]);
      });

      it("returns when the last key comes, by whatever brings it", async () => {
        const other = await client();
        const brought = [
          () => other.set("by-set", bytes("1")),
          () => other.add("by-add", 1n),
          () => other.compareAndSet("by-cas", undefined, bytes("1")),
        ];
        let done = false;
        const waited = store.wait(["here", "by-set", "by-add", "by-cas"]).then(() => {
          done = true;
        });
        const each = ["by-set", "by-add", "by-cas"].map((key) => store.wait([key]));
        for (const bring of brought) {
          expect(done).toBe(false);
          await bring();
        }
        await Promise.all([waited, ...each]);
      });

      it("waits for many keys at once, and warns of nothing", async () => {
        const warnings: Error[] = [];
        const warned = (warning: Error) => void warnings.push(warning);
        process.on("warning", warned);
        const other = await client();
        const keys = Array.from({ length: 500 }, (_, index) => `many-${index}`);
        await Promise.all(keys.slice(0, 250).map((key) => other.set(key, bytes("1"))));
        const waited = store.wait(keys);
        await Promise.all(keys.slice(250).map((key) => other.set(key, bytes("1"))));
        await waited;
        process.off("warning", warned);
        expect(warnings).toEqual([]);
      });

      it("waits for many keys of which none is there, and which come in any order", async () => {
        const other = await client();
        const keys = Array.from({ length: 300 }, (_, index) => `later-${index}`);
        const waits = [store.wait(keys), store.wait(keys.toReversed())];
        if (fixture.awaited !== undefined) await expect.poll(fixture.awaited).toBeGreaterThan(0);
        for (const key of keys) await other.set(key, bytes("1"));
        await Promise.all(waits);
      });

      it("lets many wait for one key", async () => {
        const other = await client();
        const waits = Array.from({ length: 40 }, () => store.wait(["one-for-many"]));
        await other.set("one-for-many", bytes("1"));
        await Promise.all(waits);
      });

      it("ends by its deadline and by its signal, and leaves nothing behind", async () => {
        await expect(store.wait(["never"], { timeoutMs: 20 })).rejects.toEqual(failure("TB_TIMEOUT"));
        for (let round = 0; round < 20; round += 1) {
          const abort = new AbortController();
          const waits = [1, 2, 3].map((index) =>
            store.wait([`never-${index}`, "never"], { signal: abort.signal }),
          );
          if (round % 2 === 1) await store.get("here");
          abort.abort(new Error("enough"));
          for (const wait of waits) await expect(wait).rejects.toEqual(failure("TB_CANCELLED"));
        }
        if (fixture.awaited !== undefined) await expect.poll(fixture.awaited, { timeout: 5000 }).toBe(0);
        // The lines of cancelled waits serve the next ones.
        const waited = store.wait(["never"]);
        await store.set("never", bytes("1"));
        await waited;
      });
    });

    describe("deadlines", () => {
      it.each(
        Object.entries(operations),
      )("%s is refused with a signal that has fired", async (_, operate) => {
        const reason = new Error("not any more");
        const signal = AbortSignal.abort(reason);
        await expect(operate(store, { signal })).rejects.toMatchObject({
          code: "TB_CANCELLED",
          cause: reason,
        });
      });

      it("refuses a deadline that is none", async () => {
        await expect(store.wait(["here"], { timeoutMs: Number.NaN })).rejects.toThrow(TypeError);
      });
    });

    describe("leases", () => {
      const leased: SetOptions = { leased: true };

      it("deletes leased keys with their writer, or says that it cannot", async () => {
        const writer = await client();
        if (!store.capabilities.lease) {
          await expect(writer.set("leased", bytes("1"), leased)).rejects.toEqual(failure("TB_UNSUPPORTED"));
          expect(await store.get("leased")).toBeUndefined();
          return;
        }
        await writer.set("leased", bytes("1"), leased);
        await writer.set("leased-too", bytes("1"), leased);
        await writer.set("kept", bytes("1"));
        await writer.set("taken-over", bytes("1"), leased);
        await store.set("taken-over", bytes("2"));
        expect((await store.compareAndSet("leased-too", bytes("1"), bytes("2"))).swapped).toBe(true);
        expect(text(await store.get("leased"))).toBe("1");
        await writer.close();
        expect(await store.get("leased")).toBeUndefined();
        expect(await store.get("leased-too")).toBeUndefined();
        expect(text(await store.get("kept"))).toBe("1");
        expect(text(await store.get("taken-over"))).toBe("2");
      });
    });

    describe("closed", () => {
      it.each(Object.entries(operations))("%s fails", async (_, operate) => {
        const closed = await client();
        await closed.close();
        await expect(operate(closed)).rejects.toEqual(failure("TB_CLOSED"));
      });

      it("ends what is under way, and does nothing the second time", async () => {
        const closed = await client();
        const waits = [closed.wait(["never comes"]), closed.wait(["never comes", "here"])];
        const ended = Promise.all(waits.map((wait) => expect(wait).rejects.toEqual(failure("TB_CLOSED"))));
        await store.get("here");
        await Promise.all([closed.close(), closed.close()]);
        await closed[Symbol.asyncDispose]();
        await ended;
        if (fixture.awaited !== undefined) await expect.poll(fixture.awaited, { timeout: 5000 }).toBe(0);
        expect(text(await store.get("here"))).toBe("1");
      });
    });
  });
}
