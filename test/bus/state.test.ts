import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { z } from "zod";
import { type EventPort, openEventPort } from "../../src/bus/process/event-port.ts";
import { ownIdentity } from "../../src/bus/process/identity.ts";
import { openState, type State } from "../../src/bus/queue/state.ts";
import { TensorBusError } from "../../src/errors.ts";
import { freshPaths } from "./kit/processes.ts";

let port: EventPort;
let state: State;
let path: string;

beforeEach(async () => {
  port = openEventPort();
  path = freshPaths().state;
  state = await openState({ path, port });
});
afterEach(async () => {
  await state.close();
  await port.close();
});

const put = (client: bigint, command: bigint, outcome: Parameters<State["putResult"]>[2]) =>
  state.write("a test", () => state.putResult(client, command, outcome));

describe("the agent's state", () => {
  it("gives every agent a generation of its own, larger than the last", async () => {
    expect(state.agent()).toBeUndefined();
    const record = { ...ownIdentity(), rank: 3, wake: "/w", heartbeat: "/h", ready: false };
    const first = await state.enthrone(record);
    expect(first.predecessor).toBeUndefined();
    expect(state.agent()).toEqual(first.agent);
    const second = await state.enthrone({ ...record, wake: "/v" });
    expect(second.predecessor).toEqual(first.agent);
    expect(second.agent.generation).toBeGreaterThan(first.agent.generation);
    await state.write("a test", () => state.putAgent({ ...second.agent, ready: true }));
    await state.close();
    state = await openState({ path, port });
    expect(state.agent()).toEqual({ ...second.agent, ready: true });
  });

  it("keeps results, errors with all that they say included", async () => {
    const error = new TensorBusError("TB_MESH", "no such mesh", {
      details: {
        shape: [1, 2n],
        deep: { none: undefined, huge: 2n ** 70n, at: 2n ** 60n },
        bytes: Buffer.from("x"),
      },
    });
    await put(7n, 2n, { ok: false, error });
    await put(7n, 1n, { ok: true, value: { answer: 42n, text: "ü" } });
    await put(8n, 1n, { ok: true, value: undefined });
    expect(state.result(7n, 1n)).toEqual({ ok: true, value: { answer: 42n, text: "ü" } });
    expect(state.result(8n, 1n)).toEqual({ ok: true, value: null });
    expect(state.result(7n, 3n)).toBeUndefined();
    const failed = state.result(7n, 2n);
    expect(failed).toMatchObject({ ok: false, error: { code: "TB_MESH", message: "no such mesh" } });
    expect(failed?.ok === false && failed.error).toBeInstanceOf(TensorBusError);
    expect(failed?.ok === false && failed.error.details).toEqual({
      shape: [1, 2n],
      deep: { huge: String(2n ** 70n), at: 2n ** 60n },
      bytes: Buffer.from("x"),
    });
    expect(state.results(7n).map(([id, { ok }]) => [id, ok])).toEqual([
      [1n, true],
      [2n, false],
    ]);
  });

  it("lets the first result of a command stand", async () => {
    await put(7n, 1n, { ok: true, value: 1 });
    await put(7n, 1n, { ok: false, error: new TensorBusError("TB_AGENT_LOST", "late") });
    expect(state.result(7n, 1n)).toEqual({ ok: true, value: 1 });
  });

  it("forgets what was read, and clients that are gone", async () => {
    const last = 2n ** 62n - 1n;
    for (const client of [1n, 2n, last])
      for (let id = 1n; id <= 3n; id++) await put(client, id, { ok: true, value: id });
    expect(state.clientsWithResults()).toEqual([1n, 2n, last]);
    await state.write("a test", () => state.removeResults(2n, [1n, 3n, 9n]));
    expect(state.results(2n).map(([id]) => id)).toEqual([2n]);
    expect(await state.write("a test", () => state.removeClient(1n))).toBe(3);
    expect(await state.write("a test", () => state.removeClient(last))).toBe(3);
    expect(state.clientsWithResults()).toEqual([2n]);
    expect(state.hasResult(2n, 2n)).toBe(true);
    expect(state.hasResult(1n, 2n)).toBe(false);
  });

  it("keeps checked records under text keys", async () => {
    const pairs = state.table("pairs", z.strictObject({ side: z.enum(["a", "b"]), epoch: z.bigint() }));
    const rounds = state.table("rounds", z.strictObject({ n: z.int() }));
    await state.write("a test", () => {
      pairs.put("ü/1", { side: "a", epoch: 2n ** 53n + 1n });
      pairs.put("z", { side: "b", epoch: 0n });
      rounds.put("z", { n: 1 });
    });
    expect(pairs.get("ü/1")).toEqual({ side: "a", epoch: 2n ** 53n + 1n });
    expect(pairs.get("none")).toBeUndefined();
    expect(pairs.entries().map(([key]) => key)).toEqual(["z", "ü/1"]);
    expect(rounds.entries()).toEqual([["z", { n: 1 }]]);
    await expect(state.write("a test", () => pairs.put("bad", { side: "c" } as never))).rejects.toThrow();
    expect(pairs.get("bad")).toBeUndefined();
    expect(await state.write("a test", () => [pairs.remove("z"), pairs.remove("z")])).toEqual([true, false]);
    expect(pairs.entries()).toHaveLength(1);
    const others = state.table("pairs", z.strictObject({ other: z.int() }));
    expect(() => others.get("ü/1")).toThrow(expect.objectContaining({ code: "TB_BUS_FORMAT" }));
    const long = "x".repeat(2000);
    expect(() => pairs.get(long)).toThrow(expect.objectContaining({ code: "TB_COMMAND" }));
  });
});
