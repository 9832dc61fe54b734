import { describe, expect, test } from "vitest";
import { select } from "../../src/transport/selection.ts";
import { memory } from "../../transports/memory/index.ts";
import { shm } from "../../transports/shm/index.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { castTypes, randomCase } from "./compliance/cases.ts";
import { prepareCase } from "./compliance/world.ts";
import { meet, openEach } from "./kit/meet.ts";

describe("select", () => {
  const both = () => select([shm(), tcp()]);

  test("each pair of ranks takes the best that both offer, and both say the same", async () => {
    await using world = await openEach([both(), both(), both(), both(), tcp(), tcp()]);
    const cases = [
      randomCase(1, { partial: "sum", options: { strategy: "striped", bucketBytes: 4096 } }),
      randomCase(2, { types: castTypes, options: { bucketBytes: 4096, peersInFlight: 1 } }),
      randomCase(3, { partial: "max", tensors: 6, options: { bucketBytes: 4096, bucketsInFlight: 1 } }),
      randomCase(4, { tensors: 6, strided: true, options: { strategy: "striped" } }),
    ];
    const taken = new Set<string>();
    for (const one of cases) {
      const prepared = await prepareCase(world.sessions, one);
      await prepared.round();
      await prepared.round();
      for (const [rank, { stats }] of prepared.executions.entries()) {
        for (const [peer, { transport }] of stats.peers) {
          expect(transport).toBe(Math.max(rank, peer) < 4 ? "shm" : "tcp");
          expect(prepared.executions[peer]!.stats.peers.get(rank)!.transport).toBe(transport);
          taken.add(transport);
        }
      }
      await prepared[Symbol.asyncDispose]();
    }
    expect([...taken].sort()).toEqual(["shm", "tcp"]);
  });

  test("checksums take what makes them", async () => {
    expect(await meet([both(), both()])).toEqual(["shm", "shm"]);
    expect(await meet([both(), both()], true)).toEqual(["tcp", "tcp"]);
  });

  test("a forced one is taken, also where another is better", async () => {
    const forced = select([shm(), tcp()], { force: "tcp" });
    await using world = await openEach([forced, both(), both(), both(), both(), both()]);
    const prepared = await prepareCase(world.sessions, randomCase(5, { tensors: 6 }));
    for (const [rank, { stats }] of prepared.executions.entries()) {
      for (const [peer, { transport }] of stats.peers) {
        expect(transport).toBe(rank === 0 || peer === 0 ? "tcp" : "shm");
      }
    }
    await prepared.round();
    await prepared[Symbol.asyncDispose]();
  });

  test("a forced one that cannot is an error at both ends, which names what lacks", async () => {
    const forced = select([shm(), tcp()], { force: "shm" });
    for (const error of await meet([forced, tcp()])) {
      expect(error).toMatch(/^TensorBusError: .*no way between the two: shm: one of the two does not use it/);
    }
    for (const error of await meet([forced, forced], true)) {
      expect(error).toMatch(/makes no checksums/);
    }
  });

  test("says what it cannot compose", () => {
    expect(() => select([memory(), tcp()])).toThrow("the memory transport cannot share a session");
    expect(() => select([])).toThrow("select needs a transport");
    expect(() => select([shm(), tcp()], { force: "nccl" })).toThrow("there is no nccl among shm, tcp");
  });

  test("offers what any of them can", () => {
    expect(both().capabilities).toEqual({
      memory: ["host", "shared"],
      crossHost: true,
      checksum: true,
    });
  });
});
