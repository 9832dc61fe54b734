import { setTimeout as delay } from "node:timers/promises";
import { afterEach, expect, test, vi } from "vitest";
import { isPresent, Presence } from "../../src/bus/pair/presence.ts";
import { agentKey } from "../../src/bus/pair/records.ts";
import { Rendezvous } from "../../src/bus/pair/rendezvous.ts";
import { pack } from "../../src/bus/queue/commands.ts";
import { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
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

test("one that claims its rank again just before those who took it for dead remove its record hears of it", async () => {
  const newStore = memoryStores();
  const [own, other] = [new Rendezvous(newStore()), new Rendezvous(newStore())];
  const self = { rank: 1, generation: 7n };
  const presence = new Presence(own, self);
  await presence.claim(undefined, {});
  const stop = new AbortController();
  const remove = other.store.delete.bind(other.store);
  const set = own.store.set.bind(own.store);
  let removing: Promise<unknown> | undefined;
  const claimed = new Promise<void>((claim) => {
    // Its record stands again, and goes before the claim goes on.
    vi.spyOn(own.store, "set").mockImplementation(async (key, value, options) => {
      await set(key, value, options);
      if (key !== agentKey(1)) return;
      claim();
      await removing;
    });
  });
  let again: Promise<unknown> | undefined;
  vi.spyOn(other.store, "delete").mockImplementationOnce(async (key, options) => {
    await expect(presence.answer(stop.signal)).rejects.toThrow("others took it for dead");
    again = presence.claim(undefined, {}).then(() => presence.answer(stop.signal));
    again.catch(() => {});
    await claimed;
    return remove(key, options);
  });
  removing = isPresent(other, self, new Deadline());
  expect(await removing).toBe(false);
  await expect(again).rejects.toThrow("others took it for dead");
  await presence.claim(undefined, {});
  expect(await own.store.get(agentKey(1))).toBeDefined();
  stop.abort();
  await presence.leave();
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

test("a store that stalls while a question is answered has it answered again, and loses nothing", async () => {
  const newStore = memoryStores();
  const [own, other] = [new Rendezvous(newStore()), new Rendezvous(newStore())];
  const self = { rank: 1, generation: 7n };
  const presence = new Presence(own, self);
  await presence.claim(undefined, {});
  const set = own.store.set.bind(own.store);
  const stalled = vi
    .spyOn(own.store, "set")
    .mockRejectedValueOnce(new TensorBusError("TB_TIMEOUT", "the store did not answer in time"))
    .mockImplementation(set);
  const stop = new AbortController();
  const answering = presence.answer(stop.signal).catch((error: unknown) => error);
  expect(await isPresent(other, self, new Deadline())).toBe(true);
  expect(stalled.mock.calls.length).toBeGreaterThan(2);
  stop.abort();
  expect(await answering).toMatchObject({ code: "TB_CANCELLED" });
  await presence.leave();
});

test("an older answer that is taken back leaves what has been said since in the record", async () => {
  const rendezvous = new Rendezvous(memoryStores()());
  const { store } = rendezvous;
  const self = { rank: 1, generation: 7n };
  const presence = new Presence(rendezvous, self);
  await presence.claim(undefined, {});
  const answer = (token: string) => `${agentKey(1)}/answer/7/${token}`;
  const ask = async (token: string) => {
    await store.set(`${agentKey(1)}/ask`, pack({ token }));
    await store.wait([answer(token)]);
  };
  const stop = new AbortController();
  const answering = presence.answer(stop.signal).catch(() => {});
  const timers = vi.spyOn(globalThis, "setTimeout");
  await ask("0123456789abcdef");
  const [takeBack] = timers.mock.calls.find(([, ms]) => ms === 10_000)!;
  timers.mockRestore();
  const newer = "fedcba9876543210";
  const set = store.set.bind(store);
  // The time of the older answer is over just when the newer one is written.
  vi.spyOn(store, "set").mockImplementation(async (key, value, options) => {
    if (key === answer(newer)) takeBack();
    return set(key, value, options);
  });
  await ask(newer);
  expect(await store.get(`${agentKey(1)}/said`)).toBeDefined();
  stop.abort();
  await answering;
  await presence.leave();
  expect(await store.get(`${agentKey(1)}/said`)).toBeUndefined();
});
