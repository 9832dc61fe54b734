import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Examples } from "./examples.ts";

let examples: Examples;
beforeAll(async () => {
  const scripts = ["launch", "agent", "trainer", "engine"];
  examples = await Examples.build(
    Object.fromEntries(scripts.map((name) => [name, `examples/train-to-inference/${name}.js`])),
  );
});
afterAll(() => examples.remove());

describe("examples/train-to-inference", () => {
  it("moves the weights of ten steps, and every value is checked every time", async () => {
    const { code, output } = await examples.run("launch");
    expect(output.match(/every weight as it should be/g)).toHaveLength(20);
    expect(output.match(/trainer [01]: round \d+, \d+ bytes/g)).toHaveLength(20);
    expect(output).toContain("all rounds verified");
    expect(code).toBe(0);
  }, 120_000);
});
