/** A client process that is killed in the middle of a round: its round ends, its memory goes, the next one takes over. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { AgentWorld, arrayOf, failureOf, pairOptions, type Side, tensor } from "./kit/agent-kit.ts";
import { forkFixture, kill, messageOf } from "./kit/processes.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1], placements: ["S(0)"] };
const inference: Side = { name: "inference", ranks: [2], placements: ["R"] };
const elements = 64;

function mappedTensors(): number {
  return readFileSync("/proc/self/maps", "utf8").split("memfd:tensorbus").length - 1;
}

describe("a client that is killed", () => {
  it("in the middle of a round ends it everywhere, and its memory is given back once that is quiet", async () => {
    await using world = await AgentWorld.start(3);
    const trainers = [await world.client(0), await world.client(1)];
    const halves = [0, 1].map((at) => tensor([elements / 2], (index) => at * 32 + index));
    const doomed = forkFixture("doomed-client", { rank: 2, ...world.paths(2), elements });
    const register = async () => {
      const all = trainers.map((client, at) => client.registerTensors("model", [[halves[at]!, "weights"]]));
      return Promise.all(all);
    };
    const before = mappedTensors();
    const posted = messageOf(doomed, (message) => message === "posted");
    await Promise.all(trainers.map((client) => client.initPair(pairOptions(trainer, inference))));
    const handlers = await register();
    await posted;
    const sending = await handlers[0]!.transfer("send");
    expect(mappedTensors()).toBeGreaterThan(before);
    await kill(doomed);
    await expect.poll(() => world.events[2]!.some(({ kind }) => kind === "clientEnded")).toBe(true);
    await sending.wait().catch(() => {});
    expect((await failureOf(handlers[1]!.transfer("send", { blocking: true }))).code).toMatch(
      /TB_PEER_LOST|TB_CANCELLED/,
    );
    for (const handler of handlers) await handler.close();
    const next = await world.client(2);
    await next.initPair(pairOptions(inference, trainer));
    const whole = tensor([elements]);
    const receiving = next.registerTensors("model", [[whole, "weights"]]);
    const senders = await register();
    const received = await receiving;
    const ends = await Promise.all([
      received.transfer("recv"),
      ...senders.map((handler) => handler.transfer("send")),
    ]);
    await Promise.all(ends.map((end) => end.wait()));
    expect([...arrayOf(whole)]).toEqual(Array.from({ length: elements }, (_, index) => index));
  });
});
