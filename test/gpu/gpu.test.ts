/** That `npm run test:gpu` and `bench:gpu` run on the doubles, and say what lacks: a GPU, or NCCL. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");

function run(args: readonly string[], environment: Record<string, string> = {}) {
  const env = { ...process.env, ...environment };
  return spawnSync(process.execPath, [join(root, "scripts/gpu.mjs"), ...args], { env, encoding: "utf8" });
}

function recordOf(what: "test" | "bench") {
  return JSON.parse(readFileSync(join(root, `build/gpu/${what}-double.json`), "utf8"));
}

describe.each(["test", "bench"] as const)("npm run %s:gpu", (what) => {
  test("ends with 3 and says what lacks where there is no driver", () => {
    const { status, stderr } = run([what], { TENSOR_BUS_LIBCUDA: "/nowhere/libcuda.so.1" });
    expect(status).toBe(3);
    expect(stderr).toMatch(/nothing was run: TB_LIBRARY/);
  });

  test("runs on the double, and says that it was one", () => {
    const filter = what === "test" ? "another process owns" : "cuda-ipc/contiguous";
    const { status, stdout, stderr } = run([what, "--double", "--filter", filter]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toContain("double");
    const results = [{ name: expect.any(String) }];
    expect(recordOf(what)).toMatchObject({ filter, gpu: { double: true }, results });
  });
});

test("bench:gpu measures NCCL between two ranks, in place where a tensor lies in one row", () => {
  const { status, stderr } = run(["bench", "--double", "--filter", "nccl/"]);
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  const measured = { outcome: "measured", copySeconds: expect.any(Number), stagingBytes: expect.any(Number) };
  const { results } = recordOf("bench");
  expect(results).toMatchObject([
    { ...measured, name: "nccl/contiguous", stagingBytes: 0 },
    { ...measured, name: "nccl/rows-4KiB" },
    { ...measured, name: "nccl/float32-to-bfloat16" },
  ]);
  for (const { stagingBytes } of results.slice(1)) expect(stagingBytes).toBeGreaterThan(0);
});

test.each([
  ["22907", "2.29.7", /2\.30 .* this is 2\.29\.7/],
  ["21700", null, /2\.18 or newer is needed/],
])("bench:gpu skips NCCL of version %s, and says why", (version, nccl, why) => {
  const environment = { NCCL_DOUBLE_VERSION: version };
  const { status, stdout, stderr } = run(["bench", "--double", "--filter", "contiguous"], environment);
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  expect(stdout).toMatch(/nccl\/contiguous +skipped: /);
  const results = [
    { name: "cuda-ipc/contiguous", outcome: "measured" },
    { name: "nccl/contiguous", outcome: "skipped", why: expect.stringMatching(why) },
  ];
  expect(recordOf("bench")).toMatchObject({ nccl, results });
});
