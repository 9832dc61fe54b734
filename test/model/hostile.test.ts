/** Specs, configs and checkpoints are other people's files: what they may cost whoever reads them. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { readModel } from "../../src/model/config.ts";
import { NameExpression } from "../../src/model/expression.ts";
import { readBytes } from "../../src/model/files.ts";
import { maxSpecBytes, parseSpec } from "../../src/model/spec.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-hostile-"));
afterAll(() => rmSync(folder, { recursive: true }));

const spec = (model: string, match: string) => `version: 1
model: ${model}
source: { name: a, mesh: [2], ranks: 0..1 }
target: { name: b, mesh: [2], ranks: 2..3 }
placements:
  - { match: ${JSON.stringify(match)}, source: [S(0)], target: [R] }
`;
const tensors = (name: string) => `{ tensors: [{ name: ${name}, shape: [8], dtype: float32 }] }`;

async function failure(promise: Promise<unknown>): Promise<TensorBusError> {
  const error = await promise.catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(TensorBusError);
  return error as TensorBusError;
}
/** Processor seconds that it takes: the machine may have others on it. */
async function seconds(run: () => Promise<unknown>): Promise<number> {
  const before = process.cpuUsage();
  await run().catch(() => undefined);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}

describe("a spec", () => {
  it.each([
    "(a+)+$",
    "(a|a)*b",
    "(a|aa)+$",
    "(.*)*x",
    "a*a*a*a*a*a*a*b",
    "(a?){20}a{20}",
  ])("has its expression %s found in a name in no time", async (match) => {
    const text = spec(tensors("a".repeat(4000)), match);
    expect(await seconds(() => parseSpec(text, join(folder, "spec.yaml")))).toBeLessThan(5);
  });

  it.each([
    ["(a{0,1000}){1,1000}", /too large/],
    ["(a{0,1000})(b{0,1000})", /steps; at most 1000/],
    ["a".repeat(1001), /at most 1000/],
    ["(".repeat(900), /missing closing/],
    ["a(?=b)", /Perl syntax/],
    ["(a)\\1", /escape/],
  ])("may not have the expression %s", async (match, why) => {
    const error = await failure(parseSpec(spec(tensors("a"), match), join(folder, "spec.yaml")));
    expect([error.code, error.message]).toEqual(["TB_SPEC", expect.stringMatching(why)]);
    expect(error.details.line).toBe(6);
  });

  it("captures as before", () => {
    const expression = new NameExpression("experts\\.(\\d+)\\.(up|down)");
    expect([0, 1, 2, 3].map((number) => expression.group("layers.2.experts.13.up", number))).toEqual([
      "experts.13.up",
      "13",
      "up",
      undefined,
    ]);
    expect(expression.group("layers.2", 1)).toBeUndefined();
  });

  it.each([
    ["lists in one line", "[".repeat(1_000_000)],
    ["closed lists", `${"[".repeat(100_000)}${"]".repeat(100_000)}`],
    ["maps in one line", "{a: ".repeat(100_000)],
    ["lists in blocks", "- ".repeat(1_000_000)],
    ["keys that are maps", "? ".repeat(100_000)],
    ["maps in blocks", Array.from({ length: 3000 }, (_, depth) => `${" ".repeat(depth)}a:\n`).join("")],
  ])("ends early and typed where it is nested deeply: %s", async (_, text) => {
    const run = () => failure(parseSpec(text, join(folder, "spec.yaml")));
    expect(await run()).toMatchObject({
      code: "TB_SPEC",
      message: expect.stringMatching(/nested deeper than 64/),
    });
    expect(await seconds(run)).toBeLessThan(3);
  });

  it("does not compare each key with each other", async () => {
    const text = Array.from({ length: 30_000 }, (_, index) => `k${index}: 1\n`).join("");
    expect(await seconds(() => parseSpec(text, join(folder, "spec.yaml")))).toBeLessThan(10);
    const twice = await failure(parseSpec(`${text}k7: 1\n`, join(folder, "spec.yaml")));
    expect(twice.message).toMatch(/spec\.yaml:30001: not valid YAML: Map keys must be unique/);
  });

  it("expands no aliases beyond bounds", async () => {
    const levels = Array.from(
      { length: 9 },
      (_, level) => `a${level + 1}: &a${level + 1} [${`*a${level},`.repeat(9)}]\n`,
    );
    const error = await failure(parseSpec(`a0: &a0 [x]\n${levels.join("")}`, join(folder, "spec.yaml")));
    expect(error.code).toBe("TB_SPEC");
  });

  it.each([
    "/dev/zero",
    "/proc/self/mem",
    "/proc/self/environ",
    "pipe",
    "large.json",
    "folder",
  ])("reads no config from %s", async (name) => {
    if (name === "pipe") execFileSync("mkfifo", [join(folder, name)]);
    if (name === "folder") symlinkSync("/", join(folder, name));
    if (name === "large.json") {
      writeFileSync(join(folder, name), "{");
      truncateSync(join(folder, name), 2 ** 40);
    }
    const path = name.startsWith("/") ? name : join(folder, name);
    const error = await failure(parseSpec(spec(`{ config: ${path} }`, ".*"), join(folder, "spec.yaml")));
    // What is no regular file is not even read: that of the kernel calls itself one.
    const refused = ["/dev/zero", "pipe", "folder"].includes(name)
      ? ["TB_FILE"]
      : ["TB_FILE", "TB_MODEL_CONFIG"];
    expect(refused).toContain(error.code);
    // Nothing of what stands there is told.
    expect(error.message).not.toContain(process.env.PATH!.slice(0, 8));
  });

  it("is no longer than it may be", async () => {
    const path = join(folder, "long.yaml");
    writeFileSync(path, "#");
    truncateSync(path, maxSpecBytes + 1);
    await expect(readBytes(path, maxSpecBytes)).rejects.toMatchObject({ code: "TB_FILE" });
    truncateSync(path, maxSpecBytes);
    expect(await readBytes(path, maxSpecBytes)).toHaveLength(maxSpecBytes);
  });
});

describe("a config", () => {
  it("ends early and typed where it is nested deeply", async () => {
    const path = join(folder, "deep.json");
    for (const text of ["[".repeat(1_000_000), `${'{"a":'.repeat(65)}1${"}".repeat(65)}`]) {
      writeFileSync(path, text);
      await expect(readModel(path)).rejects.toMatchObject({
        code: "TB_MODEL_CONFIG",
        message: expect.stringMatching(/nested deeper than 64/),
      });
    }
  });
});

describe("bounds of what is read", () => {
  it("an expression is short, and looks at no name that is long", () => {
    expect(() => new NameExpression("a".repeat(1001))).toThrow(/of 1001 characters; at most 1000/);
    const any = new NameExpression("(a)");
    expect([4096, 4097].map((length) => any.test("a".repeat(length)))).toEqual([true, false]);
    expect(any.group("a".repeat(4097), 1)).toBeUndefined();
  });

  it("a device is no file", async () => {
    await expect(readBytes("/dev/null", 100)).rejects.toMatchObject({ code: "TB_FILE" });
  });
});
