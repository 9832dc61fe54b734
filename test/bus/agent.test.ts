import { existsSync, readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { keyOf } from "../../src/bus/queue/environment.ts";
import type { EchoAgentMessage, EchoAgentOptions } from "./children/echo-agent.ts";
import { EchoClient } from "./children/echo-client.ts";
import { exitOf, forkFixture, freshPaths, kill, messageOf, stopIdle, stopped } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });
type Ready = Extract<EchoAgentMessage, { ready: true }>;

const clients: EchoClient[] = [];
afterEach(async () => {
  for (const client of clients.splice(0)) await client.close();
});

async function startAgent(options: EchoAgentOptions) {
  const child = forkFixture("echo-agent", options);
  const message = await messageOf<EchoAgentMessage>(child);
  if (!("ready" in message)) throw new Error(`the agent did not start: ${JSON.stringify(message)}`);
  return { child, ...(message as Ready) };
}

async function connect(paths: ReturnType<typeof freshPaths>, options = {}): Promise<EchoClient> {
  const client = await EchoClient.connect(paths, options);
  clients.push(client);
  return client;
}

/** Resolves once the agent has taken note of the client: from then on only its commands are to be taken. */
async function untilNoted({ queue }: EchoClient): Promise<void> {
  const { environment } = queue;
  const flags = () => environment.read(() => environment.root.get(keyOf(1)))?.[20] ?? 0;
  while ((flags() & 2) !== 0) await sleep(2);
}

/** How often each command of that client was run, by whichever agent. */
function runsOf(log: string, client: EchoClient): Map<bigint, number> {
  const runs = new Map<bigint, number>();
  const lines = existsSync(log) ? readFileSync(log, "utf8").trimEnd().split("\n") : [];
  for (const line of lines) {
    const [owner, id] = line.split(" ").map(BigInt);
    if (owner === client.identity.id) runs.set(id!, (runs.get(id!) ?? 0) + 1);
  }
  return runs;
}

describe("an agent", () => {
  it("answers commands, failing ones with their error, slow ones without holding up others", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const slow = client.query("slow");
    const order: unknown[] = [];
    await Promise.all([
      slow.then((value) => order.push(value)),
      client.query(1).then(() => {
        order.push(1);
        return client.query("hurry");
      }),
      expect(client.query("fail")).rejects.toMatchObject({
        code: "TB_VERIFY",
        message: "it was asked to fail",
        details: { batch: "fail", big: 2n ** 60n },
      }),
    ]);
    expect(order).toEqual([1, "late"]);
    expect(await client.query(2)).toMatchObject({ pid: agent.child.pid, count: 5 });
    // Results are forgotten once their client has said that it has read them.
    expect(client.state.results(client.identity.id).length).toBeLessThanOrEqual(2);
  });

  it("has its paths to itself", async () => {
    const paths = freshPaths();
    await startAgent(paths);
    const second = forkFixture("echo-agent", paths);
    expect(await messageOf<EchoAgentMessage>(second)).toEqual({ failed: "TB_EXISTS" });
  });

  it("drains at SIGTERM: what was started is answered, and nothing of it is left", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const slow = client.query("slow");
    await client.query(1);
    agent.child.kill("SIGTERM");
    expect(await slow).toBe("late");
    expect(await exitOf(agent.child)).toEqual({ code: 0, signal: null });
    expect(client.queue.leftovers()).toEqual([]);
    expect(readdirSync("/dev/shm")).not.toContain(`sem.${agent.wake.slice(1)}`);
  });

  it("runs 10,000 commands of four clients at once: none lost, none twice, each client's in order", async () => {
    const paths = freshPaths();
    await startAgent({ ...paths, capacity: 64 });
    const floods = Array.from({ length: 4 }, () =>
      forkFixture("flood", { ...paths, count: 2500, window: 50 }),
    );
    await Promise.all(floods.map((child) => messageOf(child, (message) => message === "ready")));
    const ends = floods.map((child) =>
      messageOf<{ answered: number }>(child, (message) => "answered" in message),
    );
    for (const child of floods) child.send("go");
    expect(await Promise.all(ends)).toEqual(floods.map(() => ({ answered: 2500, wrong: 0 })));
    const client = await connect(paths);
    expect(client.queue.size()).toBe(0);
  });

  it.each([
    "before",
    "started",
    "answered",
    "removed",
  ] as const)("that is killed when a command was %s leaves it for the next one to end, and none runs twice", async (die) => {
    const paths = freshPaths();
    const first = await startAgent({ ...paths, die });
    const client = await connect(paths);
    const command = client.makeCommand("first");
    const outcome = client.expect(command.id).then(
      (value) => ({ value }),
      (error) => ({ code: error.code }),
    );
    const gone = exitOf(first.child);
    await client.send(command);
    expect((await gone).signal).toBe("SIGKILL");
    // Two that nobody has begun.
    const later = [client.query("second"), client.query("third")];
    const second = await startAgent(paths);
    expect(second.generation).toBeGreaterThan(first.generation);
    expect(second.lost).toBe(die === "started" ? 1 : 0);
    expect(readdirSync("/dev/shm")).not.toContain(`sem.${first.wake.slice(1)}`);
    const pid = die === "before" ? second.child.pid : first.child.pid;
    const expected =
      die === "started" ? { code: "TB_AGENT_LOST" } : { value: { pid, count: 1, batch: "first" } };
    expect(await outcome).toEqual(expected);
    for (const answer of await Promise.all(later)) expect(answer).toMatchObject({ pid: second.child.pid });
    const runs = runsOf(paths.log, client);
    expect(Object.fromEntries(runs)).toEqual(die === "started" ? { 2: 1, 3: 1 } : { 1: 1, 2: 1, 3: 1 });
    expect(client.queue.size()).toBe(0);
    await kill(second.child, "SIGTERM");
    expect(client.queue.leftovers()).toEqual([]);
  });

  it.each([
    ["asked", "started"],
    ["answered", "answered"],
    ["removed", "removed"],
  ] as const)("that is killed when a question was %s leaves an answer, and nothing else", async (_, die) => {
    const paths = freshPaths();
    const first = await startAgent({ ...paths, die });
    const client = await connect(paths);
    await untilNoted(client);
    const gone = exitOf(first.child);
    const outcome = client.request(client.makeQuestion("first"));
    expect((await gone).signal).toBe("SIGKILL");
    const second = await startAgent(paths);
    // Both may have answered it: the first answer is the one that stands.
    const pid = die === "started" ? second.child.pid : first.child.pid;
    expect(await outcome).toEqual({ pid, count: 1, batch: "first" });
    expect(await client.query("second")).toMatchObject({ pid: second.child.pid });
    expect(client.queue.size()).toBe(0);
    expect(client.state.results(client.identity.id)).toHaveLength(1);
    await kill(second.child, "SIGTERM");
    expect(client.queue.leftovers()).toEqual([]);
  });

  it("that is killed is noticed within a second, by a call under way", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    client.failWithAgent();
    await client.query(1);
    await stopIdle(agent.child, client.queue.environment);
    const call = client.query(2);
    const noticed = expect(call).rejects.toEqual(code("TB_AGENT_LOST"));
    // Stopped is not dead.
    await sleep(100);
    const killed = performance.now();
    agent.child.kill("SIGKILL");
    await noticed;
    expect(performance.now() - killed).toBeLessThan(1000);
  });

  it("cleans up after a client that is killed, whether or not it has asked anything", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const watcher = await connect(paths);
    await watcher.query(1);
    for (const asks of [false, true]) {
      const flood = forkFixture("flood", { ...paths, count: asks ? 100_000 : 0, window: 4 });
      await messageOf(flood);
      const [client] = watcher.queue.clients().filter(({ pid }) => pid === flood.pid);
      const gone = messageOf<{ gone: bigint }>(agent.child, (message) => "gone" in message);
      if (asks) {
        flood.send("go");
        await expect.poll(() => watcher.state.results(client!.id).length).toBeGreaterThan(0);
      }
      const killed = performance.now();
      await kill(flood);
      expect((await gone).gone).toBe(client!.id);
      expect(performance.now() - killed).toBeLessThan(1000);
      await watcher.query(2);
      expect(watcher.queue.clients().map(({ id }) => id)).toEqual([watcher.identity.id]);
      await expect.poll(() => watcher.state.results(client!.id)).toEqual([]);
      expect(readdirSync("/dev/shm")).not.toContain(`sem.${client!.wake.slice(1)}`);
    }
  });

  it("cleans up after clients that were killed while there was no agent", async () => {
    const paths = freshPaths();
    await kill((await startAgent(paths)).child);
    const flood = forkFixture("flood", { ...paths, count: 10, window: 10 });
    await messageOf(flood);
    flood.send("go");
    await expect.poll(() => Promise.resolve(existsSync(paths.queue))).toBe(true);
    const client = await connect(paths);
    await expect.poll(() => client.queue.size()).toBe(10);
    const [identity] = client.queue.clients().filter(({ pid }) => pid === flood.pid);
    await kill(flood);
    await startAgent(paths);
    await client.query("after");
    await expect.poll(() => client.queue.clients().length).toBe(1);
    expect(readdirSync("/dev/shm")).not.toContain(`sem.${identity!.wake.slice(1)}`);
    expect(existsSync(paths.log)).toBe(true);
    expect(readFileSync(paths.log, "utf8")).not.toContain(String(identity!.id));
  });

  it("goes on when clients are killed in the middle of their writes", async () => {
    const paths = freshPaths();
    await startAgent({ ...paths, capacity: 64 });
    const client = await connect(paths, { capacity: 64 });
    for (let round = 0; round < 4; round++) {
      const flood = forkFixture("flood", { ...paths, count: 100_000, window: 50 });
      await messageOf(flood);
      flood.send("go");
      await sleep(40 + round * 7);
      await kill(flood);
      expect(await client.query(round)).toMatchObject({ batch: round });
    }
    const holder = forkFixture("holder", { path: paths.queue, past: false, signal: "SIGKILL" });
    await messageOf(holder);
    holder.send("go");
    await exitOf(holder);
    expect(await client.query("after")).toMatchObject({ batch: "after" });
  });

  it("keeps its event loop, and says that it is stuck, while a client is stopped in the middle of a write", async () => {
    const paths = freshPaths();
    const agent = await startAgent({ ...paths, stuckMs: 200 });
    const client = await connect(paths, { stuckMs: 100 });
    await client.query(1);
    const holder = forkFixture("holder", { path: paths.queue, past: false, signal: "SIGSTOP" });
    await messageOf(holder);
    const fault = messageOf<{ fault: string }>(agent.child, (message) => "fault" in message);
    holder.send("go");
    await stopped(holder);
    await expect(client.query(2)).rejects.toEqual(code("TB_QUEUE_STUCK"));
    client.ring();
    expect(await fault).toEqual({ fault: "TB_QUEUE_STUCK" });
    agent.child.send("still there?");
    await messageOf(agent.child, (message: object) => "cpuUs" in message);
    holder.kill("SIGCONT");
    await messageOf(holder, (message) => message === "done");
    expect(await client.query(3)).toMatchObject({ batch: 3 });
  });

  it("that nobody asks anything of takes next to nothing, and writes nothing to a disk", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    await client.query(1);
    await sleep(100);
    const cpuUs = async () => {
      const answer = messageOf<{ cpuUs: number }>(agent.child, (message) => "cpuUs" in message);
      agent.child.send("how much?");
      return (await answer).cpuUs;
    };
    const written = () =>
      /^write_bytes: (\d+)/m.exec(readFileSync(`/proc/${agent.child.pid}/io`, "utf8"))![1];
    await cpuUs();
    const [before, bytes] = [await cpuUs(), written()];
    await sleep(1000);
    // 1 % of a core, of which asking takes its own part.
    expect((await cpuUs()) - before).toBeLessThan(10_000);
    expect(written()).toBe(bytes);
  });
});
