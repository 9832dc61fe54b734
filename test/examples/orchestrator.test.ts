import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Examples } from "./examples.ts";

let examples: Examples;
beforeAll(async () => {
  examples = await Examples.build({ orchestrator: "examples/orchestrator/main.js" });
});
afterAll(() => examples.remove());

describe("examples/orchestrator", () => {
  it("plans, keeps its budget, and moves every value", async () => {
    const { code, output } = await examples.run("orchestrator");
    expect(output).toMatch(/rank 0: sends \d+ bytes/);
    expect(output).toMatch(/moved \d+ bytes in round 1, every value as it should be/);
    expect(code).toBe(0);
  });
});
