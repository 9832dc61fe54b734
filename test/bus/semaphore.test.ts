import { chmodSync, chownSync, existsSync, statSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type EventPort, openEventPort } from "../../src/bus/process/event-port.ts";
import { isPrivateName, privateName } from "../../src/bus/process/names.ts";
import {
  generateSemaphoreName,
  openBell,
  openWaker,
  Semaphore,
  unlinkSemaphore,
} from "../../src/bus/process/semaphore.ts";
import { TensorBusError } from "../../src/errors.ts";
import { nativeBus } from "../../src/ffi/bus.ts";

fc.configureGlobal({ seed: 20_261 });

const code = (expected: string) => expect.objectContaining({ code: expected });
const fileOf = (name: string) => `/dev/shm/sem.${name.slice(1)}`;

describe("generateSemaphoreName", () => {
  it("says type, context and process", () => {
    expect(generateSemaphoreName("transfer", "step/7:a")).toMatch(
      new RegExp(`^/command_transfer_step_7_a_${process.pid}_[0-9a-f]+$`),
    );
    expect(generateSemaphoreName("query", 2n ** 60n)).toContain("_1152921504606846976_");
  });

  it("names a semaphore that the system takes, whatever type and context are, and never twice", () => {
    const names = new Set<string>();
    const text = fc.oneof(
      fc.string({ unit: "binary", maxLength: 400 }),
      fc.string(),
      fc.constant("ü".repeat(300)),
    );
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 30 }), text, (type, context) => {
        const name = generateSemaphoreName(type, context);
        expect(names.has(name)).toBe(false);
        names.add(name);
        expect(name.slice(1)).not.toMatch(/[/:]/);
        const semaphore = nativeBus.tb_semaphore_create(name);
        expect(existsSync(fileOf(name))).toBe(true);
        nativeBus.tb_semaphore_close(semaphore);
        expect(unlinkSemaphore(name)).toBe(true);
      }),
      { seed: 1, numRuns: 300 },
    );
  });
});

describe("a semaphore", () => {
  it("completes every wait, before and after, with its value", async () => {
    const { semaphore, complete, fail } = Semaphore.create<number>("/s");
    const early = semaphore.wait();
    expect(semaphore.state).toBe("pending");
    complete(7);
    complete(8);
    fail(new Error("late"));
    expect(await early).toBe(7);
    expect(await semaphore.wait()).toBe(7);
    expect(await semaphore.wait({ timeoutMs: 0 })).toBe(7);
    expect(semaphore.state).toBe("completed");
  });

  it("fails every wait with the error, and nobody else", async () => {
    const { semaphore, fail } = Semaphore.create("/s");
    const error = new TensorBusError("TB_VERIFY", "no");
    fail(error);
    await sleep(1);
    expect(semaphore.state).toBe("failed");
    await expect(semaphore.wait()).rejects.toBe(error);
    await expect(semaphore.wait()).rejects.toBe(error);
  });

  it("is left as it is by a wait that gives up", async () => {
    const { semaphore, complete } = Semaphore.create<string>("/s");
    await expect(semaphore.wait({ timeoutMs: 1 })).rejects.toEqual(code("TB_TIMEOUT"));
    const abort = new AbortController();
    const cancelled = semaphore.wait({ signal: abort.signal });
    abort.abort("enough");
    await expect(cancelled).rejects.toEqual(code("TB_CANCELLED"));
    complete("done");
    expect(await semaphore.wait()).toBe("done");
  });
});

describe("a wake semaphore", () => {
  let port: EventPort;
  beforeEach(() => {
    port = openEventPort();
  });
  afterEach(() => port.close());

  it("is private and random", () => {
    const waker = openWaker(port);
    expect(isPrivateName(waker.name)).toBe(true);
    expect(waker.name).not.toBe(privateName());
    expect(statSync(fileOf(waker.name)).mode & 0o777).toBe(0o600);
    const others = waker.name.replace(/^\/tensorbus-\d+/, `/tensorbus-${process.geteuid!() + 1}`);
    expect(isPrivateName(others)).toBe(false);
    expect(isPrivateName("/tensorbus-0-short")).toBe(false);
    waker.close();
    waker.close();
    expect(existsSync(fileOf(waker.name))).toBe(false);
  });

  it("wakes the process that owns it, for as long as somebody listens", async () => {
    const waker = openWaker(port);
    const bell = openBell(waker.name);
    const letGo = port.hold();
    let wakeUps = 0;
    for (let i = 0; i < 50; i++) {
      await new Promise<void>((resolve) => {
        const stop = waker.onWake(() => {
          wakeUps++;
          stop();
          resolve();
        });
        bell.ring();
      });
    }
    expect(wakeUps).toBe(50);
    bell.close();
    bell.ring();
    letGo();
    waker.close();
  });

  it("keeps the port it reports to from being closed before it", async () => {
    const waker = openWaker(port);
    await expect(port.close()).rejects.toEqual(code("TB_BUSY"));
    waker.close();
  });

  it("is made exclusively", () => {
    const name = privateName();
    const semaphore = nativeBus.tb_semaphore_create(name);
    expect(() => nativeBus.tb_semaphore_create(name)).toThrow(code("TB_EXISTS"));
    nativeBus.tb_semaphore_close(semaphore);
    expect(() => nativeBus.tb_semaphore_close(semaphore)).toThrow(code("TB_CLOSED"));
    expect(unlinkSemaphore(name)).toBe(true);
    expect(unlinkSemaphore(name)).toBe(false);
    expect(() => openBell(name)).toThrow(
      expect.objectContaining({ code: "TB_SYSTEM", details: { errno: 2 } }),
    );
    for (const bad of ["", "name", "/a/b", "/", `/${"x".repeat(252)}`]) {
      expect(() => nativeBus.tb_semaphore_create(bad)).toThrow(code("TB_SYSTEM"));
    }
  });

  it("is not opened while others may open it", () => {
    const name = privateName();
    nativeBus.tb_semaphore_close(nativeBus.tb_semaphore_create(name));
    chmodSync(fileOf(name), 0o666);
    expect(() => openBell(name)).toThrow(code("TB_FOREIGN"));
    unlinkSemaphore(name);
  });

  it.skipIf(process.geteuid!() !== 0)(
    "is not opened if it is another user's [needs root to make one]",
    () => {
      const name = privateName();
      nativeBus.tb_semaphore_close(nativeBus.tb_semaphore_create(name));
      chownSync(fileOf(name), 12345, 12345);
      expect(() => openBell(name)).toThrow(code("TB_FOREIGN"));
      unlinkSemaphore(name);
    },
  );

  it("can be waited for with a deadline, on a thread that may block", () => {
    const name = privateName();
    const semaphore = nativeBus.tb_semaphore_create(name);
    expect(() => nativeBus.tb_semaphore_wait(semaphore, 1_000_000n)).toThrow(code("TB_TIMEOUT"));
    expect(nativeBus.tb_semaphore_try(semaphore)).toBe(0);
    nativeBus.tb_semaphore_post(semaphore);
    nativeBus.tb_semaphore_post(semaphore);
    nativeBus.tb_semaphore_wait(semaphore, 0n);
    expect(nativeBus.tb_semaphore_try(semaphore)).toBe(1);
    nativeBus.tb_semaphore_close(semaphore);
    unlinkSemaphore(name);
  });
});
