/** One target for as long as `npm run fuzz` says. */
import { expect, it } from "vitest";
import { fuzz } from "./fuzz.ts";

const [target = "", seconds = "0", seed = "1"] = (process.env.TENSORBUS_FUZZ ?? "").split(",");

it.skipIf(target === "")(`takes or refuses inputs: ${target}`, { timeout: 1e9 }, async () => {
  const tried = await fuzz(target, { seconds: Number(seconds), seed: Number(seed) });
  console.log(`${tried} inputs of seed ${seed}`);
  expect(tried).toBeGreaterThan(0);
});
