import { chmodSync, chownSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type EventPort, openEventPort } from "../../src/bus/process/event-port.ts";
import { type Environment, openEnvironment } from "../../src/bus/queue/environment.ts";
import type { DeadlineOptions } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { forkFixture, kill, messageOf, stopped, temporaryFolder } from "./kit/processes.ts";

const key = Buffer.from("key");
const bytes = (text: string) => Buffer.from(text);

let port: EventPort;
let path: string;
const environments: Environment[] = [];

beforeEach(() => {
  port = openEventPort();
  path = join(temporaryFolder(), "queue");
});
afterEach(async () => {
  for (const environment of environments.splice(0)) await environment.close();
  await port.close();
});

async function openHere(options: { stuckMs?: number } = {}): Promise<Environment> {
  const environment = await openEnvironment({ path, kind: "queue", port, ...options });
  environments.push(environment);
  return environment;
}

const code = (expected: string) => expect.objectContaining({ code: expected });

/** How often the event loop came round while `work` ran. */
async function roundsOfTheLoop<T>(work: Promise<T>): Promise<number> {
  let rounds = 0;
  const tick = setInterval(() => rounds++, 5);
  await work.catch(() => {});
  clearInterval(tick);
  return rounds;
}

describe("a folder of the bus", () => {
  it("is private, and so is every file in it", async () => {
    const environment = await openHere();
    await environment.write("a write", () => environment.root.put(key, bytes("1")));
    expect(statSync(path).mode & 0o777).toBe(0o700);
    for (const file of ["data.mdb", "lock.mdb", "locks", "format.json"]) {
      expect(statSync(join(path, file)).mode & 0o777, file).toBe(0o600);
    }
  });

  it("is refused while others may enter it", async () => {
    mkdirSync(path);
    chmodSync(path, 0o755);
    await expect(openHere()).rejects.toEqual(code("TB_FOREIGN"));
  });

  it.skipIf(process.geteuid!() !== 0)(
    "is refused if it is another user's [needs root to make one]",
    async () => {
      mkdirSync(path, { mode: 0o700 });
      chownSync(path, 12345, 12345);
      await expect(openHere()).rejects.toEqual(code("TB_FOREIGN"));
    },
  );

  it("is refused if its lock file is a link, or open to others", async () => {
    mkdirSync(path, { mode: 0o700 });
    writeFileSync(join(path, "locks"), "", { mode: 0o644 });
    chmodSync(join(path, "locks"), 0o644);
    await expect(openHere()).rejects.toEqual(code("TB_FOREIGN"));
  });

  it("is refused if stock LMDB, or nobody, wrote its data file", async () => {
    await (await openHere()).close();
    const stock = Buffer.alloc(8192);
    stock.writeUInt32LE(0xbeefc0de, 16);
    stock.writeUInt32LE(1, 20);
    for (const content of [stock, Buffer.alloc(8192, 7), Buffer.alloc(20, 1)]) {
      writeFileSync(join(path, "data.mdb"), content);
      await expect(openHere()).rejects.toEqual(code("TB_BUS_FORMAT"));
    }
  });

  it("is refused if it holds an LMDB file that tensorbus did not make", async () => {
    mkdirSync(path, { mode: 0o700 });
    writeFileSync(join(path, "data.mdb"), "");
    await expect(openHere()).rejects.toEqual(code("TB_BUS_FORMAT"));
  });

  it("is refused if it is of another kind or version", async () => {
    await (await openHere()).close();
    await expect(openEnvironment({ path, kind: "state", port })).rejects.toEqual(code("TB_BUS_FORMAT"));
    const file = join(path, "format.json");
    writeFileSync(file, readFileSync(file, "utf8").replace('"version":1', '"version":9'));
    await expect(openHere()).rejects.toEqual(code("TB_BUS_FORMAT"));
    writeFileSync(file, "{");
    await expect(openHere()).rejects.toEqual(code("TB_BUS_FORMAT"));
  });

  it("forgets what another boot left, damaged or not", async () => {
    const first = await openHere();
    await first.write("a write", () => first.root.put(key, bytes("old")));
    await first.close();
    const file = join(path, "format.json");
    writeFileSync(file, JSON.stringify({ kind: "queue", version: 1, boot: "another" }));
    writeFileSync(join(path, "data.mdb"), "torn by a power cut");
    const second = await openHere();
    expect(second.read(() => second.root.get(key))).toBeUndefined();
  });
});

describe("a folder whose file of locks somebody removes while it is in use", () => {
  const removed = expect.objectContaining({
    code: "TB_BUS_FORMAT",
    message: expect.stringMatching(
      /removed.*end the agent and the clients that use this folder and remove it/,
    ),
  });
  const unknown = expect.objectContaining({
    code: "TB_BUS_FORMAT",
    message: expect.stringMatching(
      /^another process has .*lock\.mdb open, but .*locks does not list it: .*\. End that process, and try again; if it was an agent, start it again$/,
    ),
  });

  it.each(["another process", "this process"])("takes in nobody else, if %s uses it", async (who) => {
    if (who === "this process") await openHere();
    const child =
      who === "another process" && forkFixture("holder", { path, past: false, signal: "SIGSTOP" });
    if (child) await messageOf(child);
    rmSync(join(path, "locks"));
    // Two gates would let in two writers.
    await expect(openHere()).rejects.toEqual(child ? unknown : removed);
    if (child) await kill(child);
  });

  it("is not to be blamed if a program reads LMDB's files past the bus: the newcomer is told to end that", async () => {
    await (await openHere()).close();
    const child = forkFixture("holder", { path, past: true, signal: "SIGSTOP" });
    await messageOf(child);
    const opening = openHere();
    const rounds = roundsOfTheLoop(opening);
    await expect(opening).rejects.toEqual(unknown);
    expect(await rounds).toBeGreaterThan(10);
    const again = openHere();
    await kill(child);
    const environment = await again;
    expect(environment.read(() => environment.root.get(key))).toBeUndefined();
  });

  it("is opened no longer than the caller waits, if a program reads it past the bus", async () => {
    await (await openHere()).close();
    const child = forkFixture("holder", { path, past: true, signal: "SIGSTOP" });
    await messageOf(child);
    const openIn = (deadline: DeadlineOptions) =>
      openEnvironment({ path, kind: "queue", port }, deadline).then((environment) =>
        environments.push(environment),
      );
    const began = performance.now();
    await expect(openIn({ timeoutMs: 50 })).rejects.toEqual(unknown);
    await expect(openIn({ signal: AbortSignal.timeout(50) })).rejects.toEqual(code("TB_CANCELLED"));
    expect(performance.now() - began).toBeLessThan(900);
    await kill(child);
  });

  it("lets those who have it open learn of it by their next calls", async () => {
    const environment = await openHere();
    await environment.write("a write", () => environment.root.put(key, bytes("1")));
    rmSync(join(path, "locks"));
    const endOf = async (call: () => unknown) => {
      for (;;) {
        try {
          call();
        } catch (error) {
          return error;
        }
        await sleep(1);
      }
    };
    const put = () => environment.tryWrite(() => environment.root.put(key, bytes("2")));
    expect(await endOf(put)).toEqual(removed);
    expect(await endOf(() => environment.read(() => environment.root.get(key)))).toEqual(removed);
  });

  it("is taken over once those who had it open have ended", async () => {
    const child = forkFixture("holder", { path, past: false, signal: "SIGSTOP" });
    await messageOf(child);
    rmSync(join(path, "locks"));
    await kill(child);
    const environment = await openHere();
    await environment.write("a write", () => environment.root.put(key, bytes("1")));
  });
});

describe("a write", () => {
  it("happens whole or not at all", async () => {
    const environment = await openHere();
    await environment.write("a write", () => environment.root.put(key, bytes("1")));
    const failing = environment.write("a write", () => {
      environment.root.put(key, bytes("2"));
      throw new RangeError("no");
    });
    await expect(failing).rejects.toThrow(RangeError);
    expect(environment.read(() => environment.root.get(key))).toEqual(bytes("1"));
  });

  it("is seen by another opening of the same folder, and stays after it", async () => {
    const [one, two] = [await openHere(), await openHere()];
    await one.write("a write", () => one.root.put(key, bytes("1")));
    expect(two.read(() => two.root.get(key))).toEqual(bytes("1"));
    await one.close();
    await two.write("a write", () => two.root.put(key, bytes("2")));
    expect(two.read(() => two.root.get(key))).toEqual(bytes("2"));
  });

  it("is seen by each read that is begun after it, and a read leaves neither a timer nor a snapshot behind", async () => {
    const [writer, reader] = [await openHere(), await openHere()];
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
    for (const value of ["1", "2", "3"]) {
      await writer.write("a write", () => writer.root.put(key, bytes(value)));
      const before = timers(); // nothing else runs until they are counted again
      expect(reader.read(() => reader.root.get(key))).toEqual(bytes(value));
      const entries = reader.read(() => [...reader.root.getRange({ start: bytes("a"), end: bytes("z") })]);
      expect(entries.map((entry) => entry.value)).toContainEqual(bytes(value));
      expect(timers()).toBe(before);
    }
    // A snapshot that stayed would keep every page that is replaced from being used again.
    const { size } = statSync(join(path, "data.mdb"));
    for (let i = 0; i < 300; i++) {
      await writer.write("a write", () => writer.root.put(key, Buffer.alloc(8192, i)));
    }
    expect(statSync(join(path, "data.mdb")).size).toBeLessThan(size + 300 * 4096);
  });

  it("of a process that is killed in its middle leaves nothing, and the next one is not held up", async () => {
    const environment = await openHere();
    const child = forkFixture("holder", { path, past: false, signal: "SIGKILL" });
    await messageOf(child);
    child.send("go");
    await messageOf(child).catch(() => {});
    await environment.write("a write", () => environment.root.put(key, bytes("1")));
    expect(environment.read(() => environment.root.get(bytes("half")))).toBeUndefined();
    expect(environment.read(() => environment.root.get(key))).toEqual(bytes("1"));
    await environment.readerCheck();
  });

  describe.each([
    ["through the gate", false],
    ["past the gate", true],
  ])("while a process that writes %s is stopped", (_, past) => {
    it("ends as TB_QUEUE_STUCK, never runs, and leaves the event loop free", async () => {
      const environment = await openHere({ stuckMs: 1500 });
      const child = forkFixture("holder", { path, past, signal: "SIGSTOP" });
      await messageOf(child);
      child.send("go");
      await stopped(child);
      let ran = false;
      const write = environment.write("a write", () => {
        ran = true;
      });
      const rounds = roundsOfTheLoop(write);
      await expect(write).rejects.toEqual(code("TB_QUEUE_STUCK"));
      // A write that waited for the lock on the loop itself would let it come round once, at its end.
      expect(await rounds).toBeGreaterThan(10);
      // Opening it anew needs the lock too.
      await expect(openHere({ stuckMs: 50 })).rejects.toEqual(code("TB_QUEUE_STUCK"));
      // Reading needs no lock.
      expect(environment.read(() => environment.root.get(key))).toBeUndefined();

      const signal = AbortSignal.timeout(20);
      await expect(environment.write("a write", () => {}, { signal })).rejects.toEqual(code("TB_CANCELLED"));
      const later = environment.write("a write", () => "done", { timeoutMs: 10_000 });
      child.kill("SIGCONT");
      await messageOf(child);
      await expect(later.catch(() => environment.write("a write", () => "done"))).resolves.toBe("done");
      expect(ran).toBe(false);
      await kill(child);
    });

    it("goes on as soon as that process is killed", async () => {
      const environment = await openHere({ stuckMs: 20_000 });
      const child = forkFixture("holder", { path, past, signal: "SIGSTOP" });
      await messageOf(child);
      child.send("go");
      await stopped(child);
      const order: number[] = [];
      const writes = [1, 2, 3].map((n) => environment.write("a write", () => order.push(n)));
      await sleep(20);
      expect(order).toEqual([]);
      await kill(child);
      await Promise.all(writes);
      expect(order).toEqual([1, 2, 3]);
      expect(environment.read(() => environment.root.get(bytes("half")))).toBeUndefined();
    });
  });

  it("that waits when the environment is closed ends as TB_CLOSED", async () => {
    const environment = await openHere({ stuckMs: 20_000 });
    const child = forkFixture("holder", { path, past: false, signal: "SIGSTOP" });
    await messageOf(child);
    child.send("go");
    await stopped(child);
    const write = environment.write("a write", () => {});
    const outcome = expect(write).rejects.toEqual(code("TB_CLOSED"));
    await environment.close();
    await outcome;
    await expect(environment.write("a write", () => {})).rejects.toBeInstanceOf(TensorBusError);
    await kill(child);
  });
});
