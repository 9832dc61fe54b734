/** Each target for a moment, with inputs that are the same every time; `npm run fuzz` goes on for as long as it is told. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { fuzz, targetNames } from "./fuzz.ts";

/** As many as take about a second. */
const inputs: Readonly<Record<string, number>> = {
  plan: 400,
  spec: 150,
  config: 800,
  "store-server": 300,
  "store-client": 25,
  etcd: 25,
  lmdb: 60,
  dcp: 100,
  layout: 600,
};

describe("inputs that nobody wrote", () => {
  it.each(targetNames)("are taken or refused by %s", { timeout: 60_000 }, async (name) => {
    expect(await fuzz(name, { inputs: inputs[name] ?? 3000, seed: 20_261 })).toBeGreaterThan(20);
  });

  it("are what npm run fuzz knows of", () => {
    const script = readFileSync(join(import.meta.dirname, "../../scripts/fuzz.mjs"), "utf8");
    for (const name of targetNames) expect(script).toContain(`"${name}"`);
  });

  it("are found if they are not", async () => {
    await expect(fuzz("nothing", {})).rejects.toThrow(/no target nothing: there are messages/);
  });
});
