import { afterAll, beforeAll, expect, test } from "vitest";
import { Examples } from "./examples.ts";

let examples: Examples;
beforeAll(async () => {
  examples = await Examples.build({ main: "examples/engine-views/main.ts" });
});
afterAll(() => examples.remove());

test("examples/engine-views receives every value in place, by the preset's views", async () => {
  const { code, output } = await examples.run("main");
  expect(
    output.match(/rank [23]: 15 parameters, \d+ values received in place, each as it should be/g),
  ).toHaveLength(2);
  expect(code).toBe(0);
}, 60_000);
