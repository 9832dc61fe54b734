import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { writeCommandLine } from "../../scripts/cli-bundle.mjs";

const root = join(import.meta.dirname, "../..");
const spec = join(root, "examples/specs/fsdp2-tp.json");
const large = join(root, "examples/specs/qwen3-30b-a3b.yaml");

/** The command line as it is shipped, in a package of its own that has no native library. */
let folder: string;
let cli: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-cli-"));
  cli = join(folder, "dist/cli.js");
  mkdirSync(join(folder, "dist"));
  await writeCommandLine(join(folder, "dist"));
  copyFileSync(join(root, "package.json"), join(folder, "package.json"));
  cpSync(join(root, "native/include"), join(folder, "native/include"), { recursive: true });
  symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
  chmodSync(cli, 0o755);
});
afterAll(() => rmSync(folder, { recursive: true }));

function run(...args: string[]): { code: number; stdout: string; stderr: string } {
  try {
    return {
      code: 0,
      stdout: execFileSync(process.execPath, [cli, ...args], {
        encoding: "utf8",
        stdio: "pipe",
        env: { ...process.env, XDG_CACHE_HOME: join(folder, "caches") },
      }),
      stderr: "",
    };
  } catch (error) {
    const { status, stdout, stderr } = error as { status: number; stdout: string; stderr: string };
    return { code: status, stdout, stderr };
  }
}

describe("the shipped command line", () => {
  test("loads what a command needs once the command is called, and nothing but that to start", async () => {
    const { metafile } = await build({
      absWorkingDir: root,
      entryPoints: { cli: "src/cli/command-line.ts" },
      outdir: join(folder, "split"),
      bundle: true,
      splitting: true,
      format: "esm",
      platform: "node",
      packages: "external",
      metafile: true,
      write: false,
    });
    const outputs = Object.entries(metafile.outputs);
    const loaded = new Set([
      outputs.find(([, { entryPoint }]) => entryPoint === "src/cli/command-line.ts")![0],
    ]);
    const packages = new Set<string>();
    for (const path of loaded) {
      for (const { path: target, kind, external } of metafile.outputs[path]!.imports) {
        if (kind !== "import-statement") continue;
        if (external !== true) loaded.add(target);
        else if (!target.startsWith("node:")) packages.add(target);
      }
    }
    expect([...packages].sort()).toEqual(["commander", "picocolors"]);
    const bytes = [...loaded].reduce((sum, path) => sum + metafile.outputs[path]!.bytes, 0);
    expect(bytes).toBeLessThan(64 * 1024);
  });

  test("is a program", () => {
    expect(execFileSync(cli, ["--version"], { encoding: "utf8" })).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test("plans and helps without the native library, and doctor says that it is missing", () => {
    expect(run("--help").code).toBe(0);
    const plan = run("plan", spec, "--verify");
    expect(plan.code).toBe(0);
    expect(plan.stdout).toContain("verified");
    const doctor = run("doctor");
    expect(doctor.code).toBe(3);
    expect(doctor.stdout).toMatch(/MISSING +native library +the native library is not built/);
    expect(doctor.stdout).toContain("npm rebuild tensorbus");
    expect(doctor.stdout.trimEnd().endsWith("Missing: native library.")).toBe(true);
  });

  test("ends with the code of the error", () => {
    expect(run("plan", "none.yaml")).toEqual({
      code: 2,
      stdout: "",
      stderr: "error: cannot read none.yaml: no such file or folder (TB_FILE)\n",
    });
  });

  test("ends quietly when its reader goes away", async () => {
    const child = spawn(process.execPath, [cli, "plan", large, "--chunks"], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (data: Buffer) => {
      stderr += data.toString();
    });
    const ended = new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
      child.on("close", (code, signal) => resolve([code, signal]));
    });
    const first = await new Promise<Buffer>((resolve) => child.stdout.once("data", resolve));
    expect(first.toString().startsWith('{"id":')).toBe(true);
    child.stdout.destroy();
    expect(await ended).toEqual([0, null]);
    expect(stderr).toBe("");
  });
});

describe("what V8 has compiled", () => {
  const plan = () => run("plan", spec);
  const folderOf = () => join(folder, "dist/compiled");
  const kept = () => readdirSync(folderOf()).filter((name) => name.includes("-plan-"));
  const inode = () => statSync(join(folderOf(), kept()[0]!)).ino;
  beforeEach(() => {
    for (const path of [folderOf(), join(folder, "caches")]) rmSync(path, { recursive: true, force: true });
  });

  test("is kept for the next process, which takes it", () => {
    const first = plan();
    expect(first.code).toBe(0);
    expect(kept()).toHaveLength(1);
    // V8 refused what would be written anew.
    const before = inode();
    expect(plan()).toEqual(first);
    expect(inode()).toBe(before);
    expect(kept()).toHaveLength(1);
  });

  test("is made anew if bytes of it have changed, of which V8 would die", () => {
    const first = plan();
    const file = join(folderOf(), kept()[0]!);
    const bytes = readFileSync(file);
    for (let at = 1000; at < bytes.length; at += 50_000) bytes[at]! ^= 4;
    writeFileSync(file, bytes);
    const before = inode();
    expect(plan()).toEqual(first);
    expect(inode()).not.toBe(before);
    const whole = readFileSync(file);
    for (const length of [0, 1, whole.length / 2]) {
      writeFileSync(file, whole.subarray(0, length));
      expect(plan()).toEqual(first);
      expect(readFileSync(file).length).toBeGreaterThan(length);
    }
  });

  test("spares a plan the modules of Node.js that take long to load", () => {
    const list = join(folder, "list.cjs");
    const empty = join(folder, "empty.mjs");
    writeFileSync(
      list,
      'process.on("exit", () => process.stderr.write(JSON.stringify(process.moduleLoadList)));',
    );
    writeFileSync(empty, "");
    const loaded = (...args: string[]): string[] =>
      JSON.parse(spawnSync(process.execPath, ["--require", list, ...args], { encoding: "utf8" }).stderr);
    plan();
    const before = loaded(empty);
    const added = loaded(cli, "plan", spec).filter((name) => !before.includes(name));
    expect(added).not.toEqual([]);
    for (const name of ["zlib", "fs/promises", "internal/fs/promises", "child_process", "crypto", "readline"])
      expect(added).not.toContain(`NativeModule ${name}`);
  });

  test("takes what is old with it, of what this program has named", () => {
    mkdirSync(join(folderOf(), "cli-commands-OLD.cjs-folder-v20.1.0-x64"), { recursive: true });
    const others = ["notes.txt", "cli-commands-OLD.cjs", "model.safetensors"];
    const own = ["cli-commands-OLD.cjs-plan-v20.1.0-x64", "cli-commands-OLD.cjs-help-v23.0.0-pre-x64-12-a1b"];
    for (const name of [...others, ...own]) writeFileSync(join(folderOf(), name), "");
    for (const name of readdirSync(folderOf())) utimesSync(join(folderOf(), name), 0, 0);
    expect(plan().code).toBe(0);
    expect(kept()).toHaveLength(1);
    const left = readdirSync(folderOf()).filter((name) => !name.includes("-plan-"));
    expect(left.sort()).toEqual([...others, "cli-commands-OLD.cjs-folder-v20.1.0-x64"].sort());
  });

  test("is neither read nor written behind a link", () => {
    const elsewhere = join(folder, "elsewhere");
    mkdirSync(elsewhere);
    symlinkSync(elsewhere, folderOf());
    expect(plan().code).toBe(0);
    expect(readdirSync(elsewhere)).toEqual([]);
  });

  test("is neither read nor written where others than the installation's owner may write", () => {
    expect(plan().code).toBe(0);
    expect(statSync(folderOf()).mode & 0o777).toBe(0o755);
    chmodSync(folderOf(), 0o777);
    const file = join(folderOf(), kept()[0]!);
    writeFileSync(file, "not looked at");
    expect(plan().code).toBe(0);
    expect(readFileSync(file, "utf8")).toBe("not looked at");
  });

  describe.skipIf(process.getuid?.() !== 0)("by another than the installation's owner", () => {
    const caches = () => join(folder, "caches/tensorbus/compiled");
    const inCaches = () => join(caches(), readdirSync(caches())[0]!);
    beforeAll(() => chownSync(join(folder, "dist"), 65_534, 65_534));
    afterAll(() => chownSync(join(folder, "dist"), 0, 0));

    test("is kept in the folder of their caches, and taken from there", () => {
      const first = plan();
      expect(first.code).toBe(0);
      expect(existsSync(folderOf())).toBe(false);
      expect(statSync(caches()).mode & 0o777).toBe(0o755);
      const before = statSync(inCaches()).ino;
      expect(plan()).toEqual(first);
      expect(statSync(inCaches()).ino).toBe(before);
    });

    test("is not read if others have written it, or might have", () => {
      plan();
      const before = statSync(inCaches()).ino;
      chownSync(inCaches(), 65_534, 65_534);
      expect(plan().code).toBe(0);
      expect(statSync(inCaches()).ino).not.toBe(before);
      chmodSync(caches(), 0o777);
      writeFileSync(inCaches(), "not looked at");
      expect(plan().code).toBe(0);
      expect(readFileSync(inCaches(), "utf8")).toBe("not looked at");
    });

    test("is kept if V8 refuses what the owner has, and taken from there", () => {
      const flags = {
        encoding: "utf8",
        env: { ...process.env, XDG_CACHE_HOME: join(folder, "caches") },
      } as const;
      const flagged = () =>
        execFileSync(process.execPath, ["--no-lazy-feedback-allocation", cli, "plan", spec], flags);
      chownSync(join(folder, "dist"), 0, 0);
      plan();
      for (const path of [join(folder, "dist"), folderOf(), join(folderOf(), kept()[0]!)])
        chownSync(path, 65_534, 65_534);
      plan();
      expect(existsSync(caches())).toBe(false);
      flagged();
      const before = statSync(inCaches()).ino;
      flagged();
      expect(statSync(inCaches()).ino).toBe(before);
    });

    test("is not kept in a third user's folder", () => {
      const others = join(folder, "caches");
      mkdirSync(others);
      chownSync(others, 65_533, 65_533);
      expect(plan().code).toBe(0);
      expect(readdirSync(others)).toEqual([]);
    });

    test("is not kept if NODE_DISABLE_COMPILE_CACHE says so", () => {
      vi.stubEnv("NODE_DISABLE_COMPILE_CACHE", "1");
      expect(plan().code).toBe(0);
      expect(existsSync(caches())).toBe(false);
      vi.unstubAllEnvs();
    });
  });

  test("is made anew if V8 does not take it", () => {
    const first = plan();
    const file = join(folderOf(), kept()[0]!);
    for (const bytes of [Buffer.alloc(0), Buffer.from("no code"), readFileSync(file).subarray(0, 5000)]) {
      writeFileSync(file, bytes);
      const before = inode();
      expect(plan()).toEqual(first);
      expect(inode()).not.toBe(before);
    }
  });

  test("is not needed where nothing can be written, and not kept of what failed", () => {
    writeFileSync(folderOf(), "");
    expect(plan().code).toBe(0);
    rmSync(folderOf());
    expect(run("plan", "none.yaml").code).toBe(2);
    expect(existsSync(folderOf())).toBe(false);
  });
});
