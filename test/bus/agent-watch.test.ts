/** What an agent tells: events, progress, its log and its metrics. */
import { pino } from "pino";
import { describe, expect, it } from "vitest";
import type { AgentProgress } from "../../src/bus/agent-events.ts";
import { logAgent } from "../../src/bus/agent-log.ts";
import { serveMetrics } from "../../src/bus/metrics.ts";
import { AgentWorld, failureOf, joinPair, type Side, tensor } from "./agent-kit.ts";

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
    expect((await failureOf(handlers[0]!.transfer("send", { blocking: true, timeoutMs: 20 }))).code).toBe(
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
    expect(completed).toMatchObject({ rank: 0, batch: "m", from: "trainer", round: 1, bytesSent: "16384" });
    const text = await (await fetch(`http://127.0.0.1:${metrics.port}/metrics`)).text();
    expect(text).toContain('tensorbus_rounds_total{outcome="completed",rank="0"} 2');
    expect(text).toContain('tensorbus_peer_bytes_total{peer="1",direction="sent",rank="0"} 32768');
    expect(text).toContain('tensorbus_errors_total{code="TB_TIMEOUT",rank="0"} 1');
    expect(text).toContain('tensorbus_queue_depth{rank="0"} 0');
    expect(text).toContain('tensorbus_stage_seconds_count{rank="0",stage="move"} 2');
    expect((await fetch(`http://127.0.0.1:${metrics.port}/`)).status).toBe(404);
    await expect(serveMetrics(world.agents[1]!, { port: metrics.port })).rejects.toMatchObject({
      code: "TB_ADDRESS_IN_USE",
    });
  });
});
