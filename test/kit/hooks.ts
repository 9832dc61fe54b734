/** Run before each file, in processes of several files too. */
import { afterAll, afterEach, vi } from "vitest";
import { endFile, endTest } from "./endings.ts";

afterEach(endTest);
// A test that fails in its middle would leave what it put in place of a method to the next file.
afterEach(() => {
  vi.restoreAllMocks();
});
afterAll(endFile);
