import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DeviceMesh, Plan, planTransfer, Replicate, Shard } from "../../src/plan/index.ts";
import { BundledCli } from "./kit/bundled-cli.ts";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-saved-"));
const spec = join(import.meta.dirname, "../../examples/specs/fsdp2-tp.json");
const saved = join(folder, "weights.tbplan");

let cli: BundledCli;
beforeAll(async () => {
  cli = await BundledCli.build();
  expect(await runCli("plan", spec, "--save", saved)).toMatchObject({ code: 0, stderr: "" });
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** A plan holds no names of its sides; else what is reported on it is what is reported on its spec. */
function comparable(stdout: string): object {
  const unnamed = stdout.replaceAll('"trainer"', '"source"').replaceAll('"checker"', '"target"');
  return { ...JSON.parse(unnamed), spec: "" };
}

describe("a saved plan", () => {
  test("is the plan's canonical bytes: its SHA-256 is the digest", async () => {
    const { digest } = JSON.parse((await runCli("plan", spec, "--json")).stdout);
    const bytes = readFileSync(saved);
    expect(createHash("sha256").update(bytes).digest("hex")).toBe(digest);
    expect(Plan.load(bytes).digest).toBe(digest);
  });

  test.each([
    ["the whole"],
    ["a rank", "--rank", "1"],
    ["the proof", "--verify"],
  ])("is reported on as its spec is: %s", async (_, ...options) => {
    const own = await runCli("plan", spec, "--json", ...options);
    for (const argv of [["--load", saved], [saved]]) {
      const loaded = await runCli("plan", ...argv, "--json", ...options);
      expect(loaded).toMatchObject({ code: 0, stderr: "" });
      expect(comparable(loaded.stdout)).toEqual(comparable(own.stdout));
    }
    const text = await runCli("plan", "--load", saved, ...options);
    expect(text).toMatchObject({ code: 0, stderr: "" });
    expect(text.stdout).toContain(saved);
  });

  test("lists the chunks of its spec, and saves itself again, byte for byte", async () => {
    const again = join(folder, "again.tbplan");
    const loaded = await runCli("plan", "--load", saved, "--chunks", "--save", again);
    expect(loaded.stdout).toBe((await runCli("plan", spec, "--chunks")).stdout);
    expect(readFileSync(again).equals(readFileSync(saved))).toBe(true);
  });

  test("may have pairs on several meshes", async () => {
    const layout = (ranks: number[], placement = Shard(0)) => ({
      mesh: new DeviceMesh([ranks.length], { ranks }),
      placements: [placement],
    });
    const plan = await planTransfer({
      pairs: {
        one: { source: layout([0, 1]), target: layout([4]) },
        two: { source: layout([2, 3, 1]), target: { ...layout([4]), placements: [Replicate()] } },
      },
      tensors: [
        { name: "a", pair: "one", shape: [6], dtype: "int8" },
        { name: "b", pair: "two", shape: [6], dtype: "int8" },
      ],
    });
    writeFileSync(join(folder, "pairs.tbplan"), plan.bytes);
    const { stdout } = await runCli("plan", "--load", join(folder, "pairs.tbplan"));
    expect(stdout).toMatch(/^ +source +source \(mesh 4, ranks 0\.\.3\)$/m);
    expect(stdout).toMatch(/^ +target +target \(mesh 1, ranks 4\)$/m);
    expect(stdout).toContain(plan.digest);
  });

  test("names a plan that is damaged, cut off, or of another version", async () => {
    const bytes = readFileSync(saved);
    const attempt = async (contents: Uint8Array) => {
      const path = join(folder, "damaged.tbplan");
      writeFileSync(path, contents);
      const { code, stdout, stderr } = await runCli("plan", "--load", path);
      expect([code, stdout]).toEqual([2, ""]);
      return stderr;
    };
    for (const length of [0, 3, 9, 40, bytes.length - 1]) {
      expect(await attempt(bytes.subarray(0, length))).toMatch(
        /^error: .*damaged\.tbplan.*\(TB_PLAN_FORMAT\)\n$/,
      );
    }
    const flipped = Buffer.from(bytes);
    flipped[200]! ^= 4;
    expect(await attempt(flipped)).toMatch(/damaged\.tbplan: the plan is damaged.*\(TB_PLAN_FORMAT\)\n$/);
    const newer = Buffer.from(bytes);
    newer.writeUInt16LE(999, 6);
    expect(await attempt(newer)).toMatch(/planner 999; this is .*\(TB_PLAN_FORMAT\)\n$/);
    expect(await attempt(readFileSync(spec))).toMatch(
      /these bytes are not a saved plan \(TB_PLAN_FORMAT\)\n$/,
    );
    const none = await runCli("plan", "--load", join(folder, "none"));
    expect([none.code, none.stderr]).toEqual([
      2,
      expect.stringMatching(/no such file or folder \(TB_FILE\)\n$/),
    ]);
  });

  test("is asked for once: as a spec or with --load", async () => {
    const { code, stderr } = await runCli("plan", spec, "--load", saved);
    expect([code, stderr]).toEqual([2, "error: option '--load <file>' takes the place of argument 'spec'\n"]);
  });
});

describe("--save", () => {
  test("says where the plan is", async () => {
    const path = join(folder, "said.tbplan");
    const text = await runCli("plan", spec, "--save", path);
    expect(text.stdout).toContain(`\n\nSaved to ${path}, ${readFileSync(path).length} B\n`);
    const json = await runCli("plan", spec, "--save", path, "--json");
    expect(JSON.parse(json.stdout).saved).toBe(path);
  });

  test("writes the file whole or not at all, and leaves nothing beside it", async () => {
    const inside = join(folder, "inside");
    mkdirSync(inside);
    const path = join(inside, "p.tbplan");
    writeFileSync(path, "what was there before");
    expect(await runCli("plan", spec, "--save", path)).toMatchObject({ code: 0 });
    expect(readFileSync(path).equals(readFileSync(saved))).toBe(true);
    expect(readdirSync(inside)).toEqual(["p.tbplan"]);
  });

  test("follows a link, and replaces no folder or device", async () => {
    const link = join(folder, "link.tbplan");
    const target = join(folder, "linked.tbplan");
    writeFileSync(target, "");
    symlinkSync(target, link);
    expect(await runCli("plan", spec, "--save", link)).toMatchObject({ code: 0 });
    expect(lstatSync(link).isSymbolicLink()).toBe(true);
    expect(readFileSync(target).equals(readFileSync(saved))).toBe(true);
    for (const path of [folder, "/dev/null"]) {
      const { code, stderr } = await runCli("plan", spec, "--save", path);
      expect([code, stderr]).toEqual([
        2,
        `error: cannot write ${path}: it is not a regular file (TB_FILE)\n`,
      ]);
    }
    expect(lstatSync("/dev/null").isCharacterDevice()).toBe(true);
  });

  test("says what is wrong with the place", async () => {
    const { code, stderr } = await runCli("plan", spec, "--save", join(folder, "none/p.tbplan"));
    expect([code, stderr]).toEqual([2, expect.stringMatching(/^error: cannot write .* \(TB_FILE\)\n$/)]);
  });

  test.skipIf(process.getuid?.() !== 0)("keeps the old file where the disk is full (needs root)", () => {
    const small = join(folder, "small");
    mkdirSync(small);
    // A disk of two pages: one has the old file, and the other is full of something else.
    const script =
      `mount -t tmpfs -o size=8k,nr_inodes=8 none ${small} && cd ${small} && echo old > p.tbplan && ` +
      'head -c 4096 /dev/zero > filler && "$0" "$@"; code=$?; cat p.tbplan; ls -A; exit $code';
    const { status, stdout, stderr } = spawnSync(
      "unshare",
      ["-m", "sh", "-c", script, process.execPath, cli.script, "plan", spec, "--save", "p.tbplan"],
      { encoding: "utf8" },
    );
    expect([status, stdout]).toEqual([4, "old\nfiller\np.tbplan\n"]);
    expect(stderr).toMatch(
      /^error: cannot write p\.tbplan: the disk or the quota is full \(TB_NO_SPACE\)\n$/,
    );
  });
});
