import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type EventPort, openEventPort } from "../../src/bus/process/event-port.ts";
import { hasPassed, isRunning, momentIn, ownIdentity } from "../../src/bus/process/identity.ts";
import {
  claimFolder,
  clientOffset,
  FolderUse,
  LockFile,
  lockFreed,
  lockOffsets,
  openPulse,
  startHeartbeat,
  tryLock,
  unlinkHeartbeat,
  unresponsiveMs,
  watchLock,
} from "../../src/bus/process/liveness.ts";
import { forkFixture, kill, messageOf, temporaryFolder } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });

let port: EventPort;
let locks: string;
beforeEach(() => {
  port = openEventPort();
  locks = join(temporaryFolder(), "locks");
});
afterEach(() => port.close());

interface Living {
  readonly heartbeat: string;
}

describe("a lock", () => {
  it("has one holder, though both be in one process", () => {
    const held = tryLock(locks, 5n);
    expect(held).toBeDefined();
    expect(tryLock(locks, 5n)).toBeUndefined();
    const farther = tryLock(locks, clientOffset(2n ** 62n - 1n));
    expect(farther).toBeDefined();
    using view = new LockFile(locks);
    expect(view.isHeld(5n)).toBe(true);
    expect(view.isHeld(6n)).toBe(false);
    held?.close();
    held?.close();
    expect(view.isHeld(5n)).toBe(false);
    tryLock(locks, 5n)!.close();
    farther?.close();
  });

  it("tells those who wait for it, once, and only after they have asked", async () => {
    const held = tryLock(locks, 5n)!;
    let freed = 0;
    const watches = Array.from({ length: 8 }, () => watchLock(port, locks, 5n, () => freed++));
    const gone = watchLock(port, locks, 5n, () => freed++);
    await sleep(20);
    expect(freed).toBe(0);
    gone.close();
    const letGo = port.hold();
    held.close();
    await lockFreed(port, locks, 5n);
    while (freed < 8) await sleep(1);
    await sleep(10);
    expect(freed).toBe(8);
    for (const watch of watches) watch.close();
    letGo();
  });

  it("can be waited for with a deadline", async () => {
    const held = tryLock(locks, 5n)!;
    await expect(lockFreed(port, locks, 5n, { timeoutMs: 10 })).rejects.toEqual(code("TB_TIMEOUT"));
    held.close();
    await lockFreed(port, locks, 5n);
  });
});

it("the use of a folder is not begun while a program holds the lock of all users alone, and can be later", () => {
  using use = new FolderUse(locks);
  const alone = tryLock(locks, lockOffsets.users)!;
  expect(() => use.begin()).toThrow(code("TB_BUS_FORMAT"));
  alone.close();
  use.begin();
  using other = new FolderUse(locks);
  expect(other.others).toBe(true);
  other.begin();
});

describe("a folder's agent", () => {
  it("is one at a time", async () => {
    const claim = claimFolder(port, locks);
    expect(() => claimFolder(port, locks)).toThrow(code("TB_EXISTS"));
    using view = new LockFile(locks);
    expect(view.isHeld(lockOffsets.agent)).toBe(false);
    await claim.live();
    await claim.live();
    expect(view.isHeld(lockOffsets.agent)).toBe(true);
    claim.close();
    expect(view.isHeld(lockOffsets.agent)).toBe(false);
    claimFolder(port, locks).close();
  });

  it("takes over from a dead one whatever those do who watched it", async () => {
    const child = forkFixture("living", { locks });
    const { heartbeat } = await messageOf<Living>(child);
    for (let round = 0; round < 20; round++) {
      const claim = round === 0 ? undefined : claimFolder(port, locks);
      await claim?.live();
      const watches = Array.from({ length: 6 }, () => watchLock(port, locks, lockOffsets.agent, () => {}));
      if (claim === undefined) await kill(child);
      else claim.close();
      const next = claimFolder(port, locks);
      await next.live();
      next.close();
      for (const watch of watches) watch.close();
    }
    unlinkHeartbeat(heartbeat);
  });
});

describe("a process", () => {
  it("that is killed is known to be dead within a second", async () => {
    const child = forkFixture("living", { locks });
    const { heartbeat } = await messageOf<Living>(child);
    const dead = lockFreed(port, locks, lockOffsets.agent);
    await sleep(20);
    const killed = performance.now();
    child.kill("SIGKILL");
    await dead;
    expect(performance.now() - killed).toBeLessThan(1000);
    expect(unlinkHeartbeat(heartbeat)).toBe(true);
  });

  it("that is stopped is unresponsive, not dead, and responds again when it goes on", async () => {
    const child = forkFixture("living", { locks });
    const { heartbeat } = await messageOf<Living>(child);
    using pulse = openPulse(heartbeat);
    expect(pulse.isResponsive()).toBe(true);
    child.kill("SIGSTOP");
    while (pulse.isResponsive()) await sleep(50);
    expect(pulse.ageMs()).toBeGreaterThanOrEqual(unresponsiveMs);
    using view = new LockFile(locks);
    expect(view.isHeld(lockOffsets.agent)).toBe(true);
    child.kill("SIGCONT");
    while (!pulse.isResponsive()) await sleep(5);
    await kill(child);
    expect(unlinkHeartbeat(heartbeat)).toBe(true);
    expect(unlinkHeartbeat(heartbeat)).toBe(false);
    expect(() => openPulse(heartbeat)).toThrow(code("TB_SYSTEM"));
  });

  it("beats while its event loop is busy", () => {
    const heartbeat = startHeartbeat();
    using pulse = openPulse(heartbeat.name);
    const end = performance.now() + unresponsiveMs + 100;
    while (performance.now() < end);
    expect(pulse.isResponsive()).toBe(true);
    heartbeat.close();
    expect(existsSync(`/dev/shm${heartbeat.name}`)).toBe(false);
  });

  it("is more than its pid", async () => {
    const self = ownIdentity();
    expect(isRunning(self)).toBe(true);
    expect(isRunning({ ...self, startTime: self.startTime - 1n })).toBe(false);
    expect(isRunning({ ...self, boot: "another" })).toBe(false);
    expect(isRunning({ ...self, pid: 2 ** 22 + 1 })).toBe(false);
    expect(hasPassed(momentIn(60_000))).toBe(false);
    expect(hasPassed(momentIn(0))).toBe(true);
    expect(hasPassed({ ...momentIn(60_000), boot: "another" })).toBe(true);
  });
});
