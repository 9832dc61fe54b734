/** That `npm run test:gpu` and `bench:gpu` run, on the double of libcuda, and say what lacks where there is no GPU. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");

function run(args: readonly string[], environment: Record<string, string> = {}) {
  const env = { ...process.env, ...environment };
  return spawnSync(process.execPath, [join(root, "scripts/gpu.mjs"), ...args], { env, encoding: "utf8" });
}

describe.each(["test", "bench"] as const)("npm run %s:gpu", (what) => {
  test("ends with 3 and says what lacks where there is no driver", () => {
    const { status, stderr } = run([what], { TENSOR_BUS_LIBCUDA: "/nowhere/libcuda.so.1" });
    expect(status).toBe(3);
    expect(stderr).toMatch(/nothing was run: TB_LIBRARY/);
  });

  test("runs on the double, and says that it was one", () => {
    const filter = what === "test" ? "another process owns" : "contiguous";
    const { status, stdout, stderr } = run([what, "--double", "--filter", filter]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toContain("double");
    const record = JSON.parse(readFileSync(join(root, `build/gpu/${what}-double.json`), "utf8"));
    expect(record).toMatchObject({ filter, gpu: { double: true }, results: [{ name: expect.any(String) }] });
  });
});
