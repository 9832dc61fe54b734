/** What an agent tells: events, progress, its log and its metrics. */
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { firstValueFrom } from "rxjs";
import { describe, expect, it, vi } from "vitest";
import { logAgent } from "../../src/bus/agent/log.ts";
import { agentMetrics, serveMetrics } from "../../src/bus/agent/metrics.ts";
import { Opposition } from "../../src/bus/batch/opposition.ts";
import type { AgentProgress } from "../../src/bus/pair/events.ts";
import { CommandQueue } from "../../src/bus/queue/command-queue.ts";
import { Deadline, waitUntil } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { RoundProgress } from "../../src/transport/transport.ts";
import { memory } from "../../transports/memory/index.ts";
import { AgentWorld, failureOf, joinPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0], placements: ["R"] };
const inference: Side = { name: "inference", ranks: [1], placements: ["R"] };

describe("an agent", () => {
  it("tells what it does, in events, log and metrics, and predicts its rounds", async () => {
    await using world = await AgentWorld.start(2);
    const lines: Record<string, unknown>[] = [];
    const log = pino({ level: "debug" }, { write: (line: string) => lines.push(JSON.parse(line)) });
    logAgent(world.agents[0]!, log);
    await using metrics = await serveMetrics(world.agents[0]!);
    const progress: AgentProgress[] = [];
    world.agents[0]!.progress$.subscribe((each) => progress.push(each));
    const clients = await joinPair(world, [trainer, inference]);
    const handlers = await Promise.all(
      clients.map(([client]) => client!.registerTensors("m", [[tensor([64, 64]), "weights"]])),
    );
    const round = async () => {
      const ends = [await handlers[0]!.transfer("send"), await handlers[1]!.transfer("recv")];
      return Promise.all(ends.map((end) => end.wait()));
    };
    expect((await round())[0]!.predictedSeconds).toBeUndefined();
    expect((await round())[0]!.predictedSeconds).toBeGreaterThan(0);
    expect((await failureOf(handlers[0]!.transfer("send", { blocking: true, timeoutMs: 1000 }))).code).toBe(
      "TB_TIMEOUT",
    );
    const kinds = world.events[0]!.map(({ kind }) => kind);
    for (const kind of [
      "pairMet",
      "batchRegistered",
      "signal",
      "roundStarted",
      "roundCompleted",
      "roundFailed",
      "commandFailed",
    ]) {
      expect(kinds).toContain(kind);
    }
    expect(progress.at(-1)).toMatchObject({ batch: "m", from: "trainer", bytesTotal: 16384n });
    const completed = lines.find(({ msg }) => msg === "a round was completed");
    expect(completed).toMatchObject({
      rank: 0,
      batch: "m",
      pairs: ["weights"],
      from: "trainer",
      round: 1,
      bytesSent: "16384",
    });
    const text = await (await fetch(`http://127.0.0.1:${metrics.port}/metrics`)).text();
    expect(text).toContain('tensorbus_rounds_total{outcome="completed",rank="0"} 2');
    expect(text).toContain(
      'tensorbus_peer_bytes_total{peer="1",direction="sent",transport="memory",rank="0"} 32768',
    );
    expect(text).toContain('tensorbus_errors_total{code="TB_TIMEOUT",rank="0"} 1');
    expect(text).toContain('tensorbus_queue_depth{rank="0"} 0');
    expect(text).toContain('tensorbus_stage_seconds_count{rank="0",stage="move"} 2');
    expect((await fetch(`http://127.0.0.1:${metrics.port}/`)).status).toBe(404);
    await expect(serveMetrics(world.agents[1]!, { port: metrics.port })).rejects.toMatchObject({
      code: "TB_ADDRESS_IN_USE",
    });
  });

  it("tells once that a batch has ended, whoever ended it", async () => {
    await using world = await AgentWorld.start(2);
    const registry = agentMetrics(world.agents[0]!);
    const batches = async () => (await registry.getSingleMetric("tensorbus_batches")!.get()).values[0]!.value;
    const [[sender], [receiver]] = await joinPair(world, [trainer, inference]);
    const register = () =>
      Promise.all(
        [sender!, receiver!].map((client) => client.registerTensors("m", [[tensor([4]), "weights"]])),
      );
    const first = await register();
    expect(await batches()).toBe(1);
    // The other rank ends it, and this one learns of that; then it is registered anew, and closed here.
    await first[1]!.close();
    while (world.events[0]!.every(({ kind }) => kind !== "batchEnded")) await sleep(1);
    const second = await register();
    await second[0]!.close();
    expect(await batches()).toBe(0);
    const ended = world.events[0]!.filter(({ kind }) => kind === "batchEnded");
    expect(ended).toMatchObject([
      { batch: "m", pairs: ["weights"], number: 1 },
      { batch: "m", pairs: ["weights"], number: 2 },
    ]);
  });
});

describe("an agent that cannot do what nobody waits for", () => {
  it("tells of a queue in which it cannot find who is to hear of a batch's end, and lives", async () => {
    await using world = await AgentWorld.start(2);
    const clients = await joinPair(world, [trainer, inference]);
    const [, other] = await Promise.all(
      clients.map(([client]) => client!.registerTensors("m", [[tensor([4]), "weights"]])),
    );
    const damaged = new TensorBusError("TB_BUS_FORMAT", "the queue is damaged");
    const spy = vi.spyOn(CommandQueue.prototype, "clients").mockImplementation(() => {
      throw damaged;
    });
    await other!.close();
    await expect.poll(() => world.events[0]!.map(({ kind }) => kind)).toContain("batchEnded");
    spy.mockRestore();
    const faults = world.events[0]!.flatMap((event) => (event.kind === "fault" ? [event.error] : []));
    expect(faults).toContain(damaged);
  });

  it("looks again for ranks that wait the other way if its store was slow when it first looked", async () => {
    await using world = await AgentWorld.start(2);
    const clients = await joinPair(world, [trainer, inference]);
    const handlers = await Promise.all(
      clients.map(([client]) => client!.registerTensors("m", [[tensor([4]), "weights"]])),
    );
    const late = new TensorBusError("TB_TIMEOUT", "the store did not answer in time");
    const spy = vi.spyOn(Opposition.prototype, "find");
    spy.mockRejectedValueOnce(late).mockRejectedValueOnce(late);
    const ends = handlers.map((handler) =>
      failureOf(handler.transfer("send", { blocking: true, timeoutMs: 8000 })),
    );
    for (const { code } of await Promise.all(ends)) expect(code).toMatch(/TB_BUSY|TB_CANCELLED/);
    spy.mockRestore();
  });
});

describe("an agent whose store does not answer", () => {
  it("is asked for a version only until the command's deadline, and not beyond its end", async () => {
    let [hangs, hung] = [false, 0];
    const newStore = memoryStores();
    const world = new AgentWorld(memory(), () => {
      const store = newStore();
      const get = store.get.bind(store);
      store.get = async (key, options) => {
        if (!hangs) return get(key, options);
        hung += 1;
        return waitUntil("the store", new Deadline(options), () => () => {});
      };
      return store;
    });
    await using _ = world;
    for (const rank of [0, 1]) await world.startAgent(rank);
    const [[sender], [receiver]] = await joinPair(world, [trainer, inference]);
    const [sending, receiving] = await Promise.all(
      [sender!, receiver!].map((client) => client.registerTensors("m", [[tensor([4]), "weights"]])),
    );
    const sent = await sending!.transfer("send", { version: 7 });
    await expect.poll(() => receiving!.pending()).toMatchObject({ version: 7n });
    hangs = true;
    expect(await failureOf(receiving!.pending({ timeoutMs: 200 }))).toMatchObject({ code: "TB_TIMEOUT" });
    const failed = () => world.events[1]!.filter(({ kind }) => kind === "commandFailed");
    await expect.poll(failed).toMatchObject([{ error: { code: "TB_TIMEOUT", details: { rank: 1 } } }]);
    const before = hung;
    const asked = failureOf(receiving!.pending({ timeoutMs: 60_000 }));
    await expect.poll(() => hung).toBe(before + 1);
    hangs = false;
    await receiving!.transfer("recv", { blocking: true });
    await sent.wait();
    const began = performance.now();
    await world.agents[1]!.close({ drainMs: 0 });
    expect(performance.now() - began).toBeLessThan(10_000);
    expect((await asked).code).toMatch(/TB_CLOSED|TB_AGENT_LOST/);
  });
});

describe("a client's handler", () => {
  it("tells how far a round is, to who asks early and late", async () => {
    await using world = await AgentWorld.start(2);
    const clients = await joinPair(world, [trainer, inference]);
    const [sender, receiver] = await Promise.all(
      clients.map(([client]) => client!.registerTensors("m", [[tensor([64, 64]), "weights"]])),
    );
    const early: RoundProgress[] = [];
    let completed = false;
    sender!.progress$.subscribe({ next: (each) => early.push(each), complete: () => (completed = true) });
    const sent = await sender!.transfer("send");
    const late = firstValueFrom(sender!.progress$);
    expect(await late).toEqual({ round: 1, bytesDone: 0n, bytesTotal: 16384n });
    await receiver!.transfer("recv", { blocking: true });
    await sent.wait();
    expect(early[0]).toEqual({ round: 1, bytesDone: 0n, bytesTotal: 16384n });
    expect(early.at(-1)).toEqual({ round: 1, bytesDone: 16384n, bytesTotal: 16384n });
    await sender!.close();
    expect(completed).toBe(true);
    // Nobody is asked any more once the round has ended.
    const silent: RoundProgress[] = [];
    receiver!.progress$.subscribe((each) => silent.push(each));
    await receiver!.queryTransferSignal().catch(() => {});
    expect(silent).toEqual([]);
  });
});
