import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { runCli } from "./kit/command-line.ts";

const root = join(import.meta.dirname, "../..");

describe("the command line", () => {
  test("prints its help, with examples and exit codes", async () => {
    const { code, stdout, stderr } = await runCli("--help");
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("Usage: tensorbus [options] [command]");
    expect(stdout).toMatch(/Examples:\n {2}\$ tensorbus demo/);
    expect(stdout).toMatch(
      /0 done, 1 a check failed, 2 bad input, 3 something is missing in the environment, 4 a transfer failed/,
    );
  });

  test("has a help with examples for every command", async () => {
    const names = [...(await runCli("--help")).stdout.matchAll(/^ {2}([a-z]+) .*/gm)].map(
      (match) => match[1]!,
    );
    expect(names).toEqual(expect.arrayContaining(["plan", "reshard", "demo", "doctor"]));
    for (const name of names.filter((entry) => entry !== "help")) {
      const { code, stdout } = await runCli(name, "--help");
      expect(code).toBe(0);
      expect(stdout).toContain(`Usage: tensorbus ${name}`);
      expect(stdout).toContain(`  $ tensorbus ${name}`);
      expect(stdout).toContain("-h, --help");
    }
  });

  test("prints the package's version", async () => {
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
    expect(await runCli("--version")).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  test.each([
    [["pln"], "error: unknown command 'pln' (Did you mean plan?)\n"],
    [
      ["plan"],
      "error: missing required argument 'spec', or --load and a file, or --model, --source and --target\n",
    ],
    [
      ["reshard", "a.safetensors", "--tarhget", "2:R", "--out", "b"],
      "error: unknown option '--tarhget' (Did you mean --target?)\n",
    ],
    [
      ["reshard", "a.safetensors", "--out", "b"],
      "error: required option '--target <layout>' not specified\n",
    ],
    [["doctor", "--jsn"], "error: unknown option '--jsn' (Did you mean --json?)\n"],
    [["plan", "spec.yaml", "--rank", "x"], /^error: option '--rank <rank>' argument 'x' is invalid\. .*\n$/],
  ])("%j is bad input, in one line", async (argv, message) => {
    const { code, stdout, stderr } = await runCli(...argv);
    expect([code, stdout]).toEqual([2, ""]);
    if (typeof message === "string") expect(stderr).toBe(message);
    else expect(stderr).toMatch(message);
  });

  test("shows what there is when no command is given", async () => {
    const { code, stderr } = await runCli();
    expect(code).toBe(2);
    expect(stderr).toContain("Usage: tensorbus");
  });

  test("says what went wrong in one line, and all of it with --debug", async () => {
    const short = await runCli("plan", "/none/spec.yaml");
    expect(short).toEqual({
      code: 2,
      stdout: "",
      stderr: "error: cannot read /none/spec.yaml: no such file or folder (TB_FILE)\n",
    });
    for (const argv of [
      ["--debug", "plan", "/none/spec.yaml"],
      ["plan", "/none/spec.yaml", "--debug"],
    ]) {
      const { code, stderr } = await runCli(...argv);
      expect(code).toBe(2);
      expect(stderr.startsWith(short.stderr)).toBe(true);
      expect(stderr).toContain('"path": "/none/spec.yaml"');
      expect(stderr).toMatch(/\n {4}at .*files\.ts/);
      expect(stderr).toContain("caused by Error: ENOENT");
    }
  });
});
