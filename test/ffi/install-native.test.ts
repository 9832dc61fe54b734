import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");

/** The package as a dependency has it, with a library of one file: the real script, Makefile and header. */
let folder: string;
beforeEach(() => {
  folder = join(mkdtempSync(join(tmpdir(), "tensorbus-install-")), "node_modules", "tensor bus");
  mkdirSync(join(folder, "native/src/base"), { recursive: true });
  cpSync(join(root, "native/Makefile"), join(folder, "native/Makefile"));
  cpSync(join(root, "native/include"), join(folder, "native/include"), { recursive: true });
  cpSync(join(root, "scripts/install-native.mjs"), join(folder, "scripts/install-native.mjs"));
  writeFileSync(
    join(folder, "native/src/base/version.c"),
    '#include "tensorbus.h"\nuint32_t tb_abi_version(void) { return TB_ABI_VERSION; }\n',
  );
});
afterEach(() => rmSync(join(folder, "../.."), { recursive: true, force: true }));

function install(args: readonly string[] = [], environment: Record<string, string> = {}) {
  const ran = spawnSync(process.execPath, ["scripts/install-native.mjs", ...args], {
    cwd: folder,
    encoding: "utf8",
    env: { ...process.env, ...environment },
  });
  return { status: ran.status, output: ran.stdout + ran.stderr };
}
const library = () => join(folder, "native/build/libtensorbus.so");

describe("install-native", () => {
  it("builds in silence, and does nothing more when all is up to date", () => {
    expect(install()).toEqual({ status: 0, output: "" });
    const built = statSync(library(), { bigint: true }).mtimeNs;
    expect(install(["--strict"])).toEqual({ status: 0, output: "" });
    expect(statSync(library(), { bigint: true }).mtimeNs).toBe(built);
    expect(install([], { CC: "env cc" })).toEqual({ status: 0, output: "" });
    expect(existsSync(library())).toBe(true);
  });

  it("rebuilds when a header changed", () => {
    install();
    const built = statSync(library(), { bigint: true }).mtimeNs;
    const header = join(folder, "native/include/tensorbus.h");
    writeFileSync(header, "#include <stdint.h>\n#define TB_ABI_VERSION 2\nuint32_t tb_abi_version(void);\n");
    expect(install()).toEqual({ status: 0, output: "" });
    expect(statSync(library(), { bigint: true }).mtimeNs).not.toBe(built);
  });

  it("builds where the prebuilt library cannot run, which is for glibc", () => {
    const prebuilt = join(folder, "node_modules/@tensorbus/prebuilt");
    mkdirSync(prebuilt, { recursive: true });
    writeFileSync(join(prebuilt, "libtensorbus.so"), "");
    const release = { [`${process.platform}-${process.arch}`]: { package: "@tensorbus/prebuilt" } };
    writeFileSync(join(folder, "native/prebuilt.json"), JSON.stringify(release));
    expect(install()).toEqual({ status: 0, output: "" });
    expect(existsSync(library())).toBe(false);
    const musl = "data:text/javascript,process.report.getReport = () => ({ header: {} })".replaceAll(
      " ",
      "%20",
    );
    expect(install([], { NODE_OPTIONS: `--import=${musl}` })).toEqual({ status: 0, output: "" });
    expect(existsSync(library())).toBe(true);
  });

  it("says what is missing and how to get it, and fails only when told to", () => {
    const nothing = { PATH: join(folder, "native/include"), CC: "" };
    const { status, output } = install([], nothing);
    expect(status).toBe(0);
    expect(output).toMatch(/make and a C compiler not found.*only planning works/);
    expect(output).toMatch(/apt install build-essential/);
    expect(output.trim().split("\n").length).toBe(2);
    expect(install(["--strict"], nothing).status).toBe(1);
    expect(install([], { CC: "no-such-compiler" }).output).toMatch(/CC=no-such-compiler not found/);
    expect(existsSync(library())).toBe(false);
  });

  it("shows the compiler's words when the build fails", () => {
    writeFileSync(join(folder, "native/src/base/broken.c"), "#error broken on purpose\n");
    const { status, output } = install();
    expect(status).toBe(0);
    expect(output).toMatch(/broken on purpose/);
    expect(output).toMatch(/could not be built/);
    expect(install(["--strict"]).status).toBe(1);
  });
});
