/** Events that order rounds with the work of those who own the memory, on the doubles of libcuda and libnccl (native/test/doubles). */
import { expect, test } from "vitest";
import { deviceOf, useDoubles } from "../transport/kit/nccl-doubles.ts";
import { type AgentWorld, failureOf, joinPair, type Side } from "./kit/agent-kit.ts";
import { type OwnedOptions, ownedTensor, register, run, startAgents, trainer } from "./kit/gpu-kit.ts";

useDoubles(2);

const sides: [Side, Side] = [trainer, { name: "engine", ranks: [1], placements: ["R"] }];
/** What a GPU does takes so long that all else is over before. */
const slow = { events: true, delayUs: 2_000_000 };

/** A batch of a pair of its own, from the first device to the second. */
async function prepare(world: AgentWorld, options: readonly OwnedOptions[], batch = "b") {
  const clients = (await joinPair(world, sides, batch)).flat();
  const owned = await Promise.all(options.map((each, rank) => ownedTensor(deviceOf(rank), each)));
  return { owned: owned.map(({ owner }) => owner), handlers: await register(clients, owned, batch, batch) };
}

test.each([
  "cuda-ipc",
  "nccl",
] as const)("%s: a round begins behind what `ready` stands for", async (force) => {
  await using world = await startAgents([0, 1].map(deviceOf), force === "nccl" ? { force } : {});
  const other = await prepare(world, [{}, {}], "other");
  const { owned, handlers } = await prepare(world, [slow, { events: true }]);
  await owned[0]!.ask("record ready");
  const ends = await Promise.all([handlers[0]!.transfer("send"), handlers[1]!.transfer("recv")]);
  // A round that came later is over, and the source is still not ready: what is written now is what is sent.
  await run(other.handlers);
  await owned[0]!.ask("set 5");
  await Promise.all(ends.map((end) => end.wait()));
  expect(await owned[1]!.ask("5")).toEqual({ filled: true });
});

test("`free` is recorded when the round has ended, on both sides", async () => {
  await using world = await startAgents([0, 1].map(deviceOf));
  // What the owners record themselves takes an hour: only what the agents record can come before.
  const never = { events: true, delayUs: 3_600_000_000 };
  const { owned, handlers } = await prepare(world, [never, never]);
  for (const owner of owned) await owner.ask("record free");
  await run(handlers);
  for (const owner of owned) expect(await owner.ask("wait free")).toEqual({ happened: "free" });
});

test("a GPU that does not come to `ready` in time fails the round on all ranks, and the next round is as any", async () => {
  await using world = await startAgents([0, 1].map(deviceOf));
  const { owned, handlers } = await prepare(world, [{ events: true, delayUs: 1_000_000 }, { events: true }]);
  await owned[0]!.ask("record ready");
  const late = async (options: object) => {
    const received = failureOf(handlers[1]!.transfer("recv", { blocking: true }));
    const sent = await failureOf(handlers[0]!.transfer("send", { blocking: true, ...options }));
    expect(await received).toMatchObject({ code: "TB_CANCELLED", details: { rank: 0 } });
    return sent.code;
  };
  expect(await late({ timeoutMs: 50 })).toBe("TB_TIMEOUT");
  expect(await late({ signal: AbortSignal.timeout(50) })).toBe("TB_CANCELLED");
  await owned[0]!.ask("set 77");
  await run(handlers);
  expect(await owned[1]!.ask("77")).toEqual({ filled: true });
});

test("a second call is TB_BUSY while the first waits for a GPU, and a drained agent lets that one end", async () => {
  await using world = await startAgents([0, 1].map(deviceOf));
  const { owned, handlers } = await prepare(world, [slow, { events: true }]);
  await owned[0]!.ask("record ready");
  const ends = await Promise.all([handlers[0]!.transfer("send"), handlers[1]!.transfer("recv")]);
  expect(await handlers[0]!.queryTransferSignal()).toBe(false);
  expect(await failureOf(handlers[0]!.transfer("send", { blocking: true }))).toMatchObject({
    code: "TB_BUSY",
  });
  await owned[0]!.ask("set 6");
  const closing = world.agents[0]!.close({ drainMs: 30_000 });
  await Promise.all(ends.map((end) => end.wait()));
  await closing;
  expect(await owned[1]!.ask("6")).toEqual({ filled: true });
});

test("a batch that is closed while its round waits for a GPU ends it, and the agents serve the next", async () => {
  await using world = await startAgents([0, 1].map(deviceOf));
  const { owned, handlers } = await prepare(world, [
    { events: true, delayUs: 3_600_000_000 },
    { events: true },
  ]);
  await owned[0]!.ask("record ready");
  const end = await handlers[0]!.transfer("send");
  const ended = failureOf(end.wait());
  await handlers[0]!.close();
  expect((await ended).code).toMatch(/^TB_(CANCELLED|CLOSED|BATCH_UNKNOWN)$/);
  const next = await prepare(world, [{}, {}], "next");
  await next.owned[0]!.ask("set 9");
  await run(next.handlers);
  expect(await next.owned[1]!.ask("9")).toEqual({ filled: true });
});

test("a handle that stands for no event is refused when the batch is registered", async () => {
  await using world = await startAgents([0, 1].map(deviceOf));
  const clients = (await joinPair(world, sides)).flat();
  const { tensor } = await ownedTensor(deviceOf(0));
  const bad = (ready: Uint8Array) =>
    failureOf(
      clients[0]!.registerTensors("bad", [[{ ...tensor, data: { ...tensor.data, ready } }, "weights"]], {
        timeoutMs: 2000,
      }),
    );
  expect(await bad(new Uint8Array(64))).toMatchObject({ code: "TB_CUDA" });
  expect((await bad(new Uint8Array(63))).message).toContain("a handle of 64 bytes");
});
