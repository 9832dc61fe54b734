/** What the agent's socket lets a client take: each limit of docs/client-protocol.md, reached, and what is left to others. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { Door } from "../../src/bus/door/door.ts";
import { type DoorLimits, doorLimits } from "../../src/bus/door/protocol.ts";
import { startHeartbeat } from "../../src/bus/process/liveness.ts";
import type { Command } from "../../src/bus/queue/commands.ts";
import { frameOf, RawClient, welcomed } from "./kit/door-kit.ts";

let folder: string;
let close: () => Promise<void>;
let started: Command[];
/** Commands wait until the test lets them end. */
let finish: () => void;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-door-"));
  started = [];
});
afterEach(async () => {
  finish();
  await close();
  rmSync(folder, { recursive: true, force: true });
});

async function open(limits: Partial<DoorLimits>, answer: unknown = {}): Promise<void> {
  const heartbeat = startHeartbeat();
  const held = new Promise<void>((resolve) => {
    finish = resolve;
  });
  const door = await Door.open(
    {
      rank: 0,
      generation: 1n,
      version: "test",
      path: join(folder, "client.sock"),
      uids: [],
      sides: {},
      heartbeat: heartbeat.name,
      limits,
    },
    {
      run: (command) => {
        if (command.type === "QueryStatus") return answer;
        started.push(command);
        return held;
      },
      onGone: () => {},
      onFault: (error) => {
        throw error;
      },
    },
  );
  close = async () => {
    await door.close();
    await heartbeat.close();
  };
}

const client = () => new RawClient(join(folder, "client.sock"));
const question = { batch: "b" };

it("takes so many clients, and another one when one of them has gone", async () => {
  await open({ connections: 2 });
  const [first] = [await welcomed(folder), await welcomed(folder)];
  const third = client();
  expect(await third.next()).toMatchObject({
    type: "refused",
    error: { code: "TB_QUEUE_FULL", message: expect.stringContaining("already has 2 clients") },
  });
  await third.closed;
  first.socket.destroy();
  for (;;) {
    const again = client();
    const { type } = await again.hello();
    if (type === "welcome") break;
  }
  expect((await client().next())!["error"]).toMatchObject({ code: "TB_QUEUE_FULL" });
});

it("takes so many commands of one client, and questions and ends of commands all the same", async () => {
  await open({ commands: 2 });
  const one = await welcomed(folder);
  const body = { pair: "p", local: "a", remote: "b", worldSize: 1 };
  for (const id of [101, 102]) one.send({ type: "InitPair", id, timeoutMs: 60_000, body });
  expect(await one.ask("InitPair", body)).toMatchObject({
    ok: false,
    error: { code: "TB_QUEUE_FULL", details: { capacity: 2 } },
  });
  expect(started).toHaveLength(2);
  expect(await one.ask("QueryStatus", question)).toMatchObject({ ok: true });
  const other = await welcomed(folder);
  other.send({ type: "InitPair", id: 7, timeoutMs: 60_000, body });
  expect(await other.ask("QueryStatus", question)).toMatchObject({ ok: true });
  expect(started).toHaveLength(3);
});

it("reads no frame that is longer than any command", async () => {
  await open({ frameBytes: 1000 });
  const one = await welcomed(folder);
  one.socket.write(Buffer.from([0xe9, 0x03, 0, 0]));
  expect(await one.next()).toMatchObject({ type: "refused", error: { code: "TB_COMMAND" } });
  await one.closed;
  expect(await (await welcomed(folder)).ask("QueryStatus", question)).toMatchObject({ ok: true });
});

it("waits so long for the end of a frame", async () => {
  await open({ frameMs: 50 });
  const one = await welcomed(folder);
  one.socket.write(frameOf({ type: "QueryStatus", id: 1, timeoutMs: 1, body: question }).subarray(0, 9));
  expect(await one.next()).toMatchObject({
    type: "refused",
    error: { code: "TB_TIMEOUT", message: expect.stringContaining("did not end a frame within 50 ms") },
  });
  await one.closed;
});

it("holds so many bytes of unfinished frames of all clients together, and gives them back", async () => {
  await open({ unfinishedBytes: 3000 });
  const begun = (bytes: number) => Buffer.concat([Buffer.from([0, 0x20, 0, 0]), Buffer.alloc(bytes)]);
  const [first, second] = [await welcomed(folder), await welcomed(folder)];
  first.socket.write(begun(2000));
  // What is accounted of the first is known once the door has read it: its own question comes after in no other way.
  expect(await (await welcomed(folder)).ask("QueryStatus", question)).toMatchObject({ ok: true });
  second.socket.write(begun(2000));
  expect(await second.next()).toMatchObject({
    type: "refused",
    error: { code: "TB_QUEUE_FULL", message: expect.stringContaining("unfinished frames of all clients") },
  });
  await second.closed;
  const third = await welcomed(folder);
  third.socket.write(begun(900));
  expect(await (await welcomed(folder)).ask("QueryStatus", question)).toMatchObject({ ok: true });
});

it("ends who does not read its answers", async () => {
  await open({ unreadBytes: 100_000 }, { text: "x".repeat(10_000) });
  const deaf = await welcomed(folder);
  deaf.socket.pause();
  // More than the system's own buffers hold.
  const asked = frameOf({ type: "QueryStatus", id: 1, timeoutMs: 1000, body: question });
  deaf.socket.write(Buffer.concat(Array.from({ length: 500 }, () => asked)));
  const hearing = await welcomed(folder);
  expect(await hearing.ask("QueryStatus", question)).toMatchObject({ ok: true });
  deaf.socket.resume();
  await deaf.closed;
});

it("takes so many hand-overs of descriptors with one command", async () => {
  await open({});
  const one = await welcomed(folder);
  const more = { handOvers: [1, doorLimits.handOvers + 1] };
  expect(await one.ask("QueryStatus", question, more)).toMatchObject({ error: { code: "TB_COMMAND" } });
});
