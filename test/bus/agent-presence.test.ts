import { setTimeout as delay } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { isPresent, Presence } from "../../src/bus/pair/presence.ts";
import { agentKey } from "../../src/bus/pair/records.ts";
import { Rendezvous } from "../../src/bus/pair/rendezvous.ts";
import { Deadline } from "../../src/deadline.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { memory } from "../../transports/memory/index.ts";
import { AgentWorld } from "./kit/agent-kit.ts";

const worlds: AgentWorld[] = [];
afterEach(async () => {
  for (const world of worlds.splice(0)) await world[Symbol.asyncDispose]();
});

test("a second agent of a rank is refused while the first one lives, whatever its paths are", async () => {
  const transport = memory();
  const newStore = memoryStores();
  const [first, second] = [new AgentWorld(transport, newStore), new AgentWorld(transport, newStore)];
  worlds.push(first, second);
  const agent = await first.startAgent(3);
  await expect(second.startAgent(3)).rejects.toMatchObject({
    code: "TB_EXISTS",
    message: expect.stringContaining("rank 3 is run by another agent"),
    details: { rank: 3, generation: agent.generation },
  });
  await agent.close({ drainMs: 0 });
  await second.startAgent(3);
});

test("an agent that answers is present, for any number who ask at once", async () => {
  const newStore = memoryStores();
  const rendezvous = () => new Rendezvous(newStore());
  const self = { rank: 1, generation: 7n };
  const presence = new Presence(rendezvous(), self);
  await presence.claim(undefined, {});
  const stop = new AbortController();
  const answering = presence.answer(stop.signal).catch(() => {});
  const asked = Array.from({ length: 50 }, () => isPresent(rendezvous(), self, new Deadline()));
  expect(await Promise.all(asked)).toEqual(Array(50).fill(true));
  expect(await isPresent(rendezvous(), { ...self, generation: 6n }, new Deadline())).toBe(false);
  stop.abort();
  await answering;
  await presence.leave();
});

test("one that does not answer is dead to all, and learns of it if it lives after all", async () => {
  const newStore = memoryStores();
  const [own, other] = [new Rendezvous(newStore()), new Rendezvous(newStore())];
  const self = { rank: 1, generation: 7n };
  const presence = new Presence(own, self);
  await presence.claim(undefined, {});
  expect(await isPresent(other, self, new Deadline())).toBe(false);
  expect(await other.store.get(agentKey(1))).toBe(undefined);
  const began = performance.now();
  expect(await isPresent(other, self, new Deadline())).toBe(false);
  expect(performance.now() - began).toBeLessThan(500);
  await expect(presence.answer(new AbortController().signal)).rejects.toThrow("others took it for dead");
  await presence.claim(undefined, {});
  void presence.answer(new AbortController().signal).catch(() => {});
  expect(await isPresent(other, self, new Deadline())).toBe(true);
});

test("who has no time left to wait for an answer says nothing of the agent", async () => {
  const newStore = memoryStores();
  const rendezvous = new Rendezvous(newStore());
  const self = { rank: 1, generation: 7n };
  await new Presence(rendezvous, self).claim(undefined, {});
  expect(await isPresent(rendezvous, self, new Deadline({ timeoutMs: 100 }))).toBe(true);
  await delay(1);
  expect(await rendezvous.store.get(agentKey(1))).toBeDefined();
});
