/** Files of the bus that are damaged, before they are opened and while they are in use: errors, never a signal. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { DamageTime } from "./children/damage.ts";
import { forkFixture, messageOf, temporaryFolder } from "./kit/processes.ts";

async function outcomes(options: { cases: number; when: DamageTime }): Promise<Record<string, number>> {
  const path = join(temporaryFolder(), "queue");
  const child = forkFixture("damage", { path, ...options });
  return messageOf<Record<string, number>>(child).catch((error) => {
    const last = readFileSync(`${path}.log`, "utf8").trimEnd().split("\n").at(-1);
    throw new Error(`${error.message} in ${last}`);
  });
}

describe("a folder whose files are damaged", () => {
  it("is opened and read, or is TB_BUS_FORMAT", async () => {
    const codes = await outcomes({ cases: 120, when: "before" });
    expect(Object.keys(codes).sort()).toEqual(["TB_BUS_FORMAT", "none"]);
    expect(codes["TB_BUS_FORMAT"]).toBeGreaterThan(10);
  });

  it("while it is in use is TB_BUS_FORMAT at the next read or write", async () => {
    expect(await outcomes({ cases: 40, when: "live" })).toEqual({ TB_BUS_FORMAT: 40 });
  });

  it("within a transaction, and within a page, is that transaction's TB_BUS_FORMAT", async () => {
    expect(await outcomes({ cases: 40, when: "within" })).toEqual({ TB_BUS_FORMAT: 40 });
  });
});
