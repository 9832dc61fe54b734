import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { createExecutor } from "../../src/exec/executor.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { columnsToRows } from "./compliance/data.ts";
import { prepareCase } from "./compliance/world.ts";
import { openTcp } from "./kit/tcp-world.ts";

describe("tcp: a peer that ends while it is prepared with", () => {
  for (const rank of [0, 1]) {
    it(`is lost to rank ${rank} at once, not at its deadline`, async () => {
      const world = await openTcp(2);
      const transfer = columnsToRows(64, 48, {}, [0, 1]);
      const first = await prepareCase(world.sessions, transfer);
      const second = createExecutor(world.sessions[rank]!).prepare(await planTransfer(transfer.input), {
        key: "second",
        tensors: first.memories[rank]!.tensors,
        timeoutMs: 600_000,
      });
      const lost = expect(second).rejects.toMatchObject({
        code: "TB_PEER_LOST",
        details: { rank: 1 - rank },
      });
      await sleep(50);
      await world.sessions[1 - rank]!.close();
      await lost;
      await world.sessions[rank]!.close();
    });
  }
});
