// Linking against a glibc that is older than this machine's: libraries without code, which have the names and versions of
// symbols that the older one had. glibc keeps every version of a symbol for ever, so that today's lists yesterday's.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const run = (command, ...args) => execFileSync(command, args, { encoding: "utf8", maxBuffer: 2 ** 28 });

/** -1, 0 or 1, as versions like 2.17 and 2.2.5 are ordered. */
export function compareVersions(a, b) {
  const [left, right] = [a, b].map((version) => version.split(".").map(Number));
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return Math.sign(difference);
  }
  return 0;
}

/** The newest glibc that an ELF file asks for, as "2.17", by what it needs of which symbols; undefined if of none. */
export function neededGlibc(file) {
  const versions = [...run("readelf", "-W", "--version-info", file).matchAll(/Name: GLIBC_(\d+(?:\.\d+)+)/g)];
  return versions
    .map(([, version]) => version)
    .sort(compareVersions)
    .at(-1);
}

/** The names of a library's symbols of `floor` or before, each with its newest version until then, and whether it is data. */
function symbolsUntil(library, floor) {
  const found = new Map();
  for (const line of run("readelf", "-W", "--dyn-syms", library).split("\n")) {
    const match = /^\s*\d+: \S+\s+\d+ (\S+)\s+(?:GLOBAL|WEAK)\s+DEFAULT\s+\d+ (\w+)@@?GLIBC_([\d.]+)$/.exec(
      line,
    );
    if (match === null) continue;
    const [, type, name, version] = match;
    const known = found.get(name);
    if (compareVersions(version, floor) > 0) continue;
    if (known === undefined || compareVersions(version, known.version) > 0) {
      found.set(name, { version, data: type === "OBJECT" });
    }
  }
  return found;
}

/** Where glibc had a function before 2.34, which put all of them into libc.so.6. */
function homeOf(name) {
  if (/^(?:pthread|sem)_/.test(name)) return "libpthread.so.0";
  if (/^dl(?:open|sym|vsym|close|error|addr|info|mopen)/.test(name)) return "libdl.so.2";
  if (/^(?:shm_|mq_|timer_|aio_|lio_)/.test(name)) return "librt.so.1";
  return "libc.so.6";
}

/** Makes the stubs of glibc `floor` in `folder` by the compiler `cc`. `loader` is the soname of the platform's ld.so. */
export function makeStubs({ cc, loader }, floor, folder) {
  mkdirSync(folder, { recursive: true });
  const installed = (name) => symbolsUntil(run(cc, `-print-file-name=${name}`).trim(), floor);
  const split = ["libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"];
  const libraries = new Map(split.map((soname) => [soname, new Map()]));
  for (const [name, symbol] of installed("libc.so.6")) libraries.get(homeOf(name)).set(name, symbol);
  for (const soname of ["libm.so.6", loader]) libraries.set(soname, installed(soname));
  for (const [soname, symbols] of libraries) makeStub(cc, soname, symbols, folder);
}

function makeStub(cc, soname, symbols, folder) {
  const source = [".text"];
  const versions = new Map();
  for (const [name, { version, data }] of symbols) {
    source.push(`.globl ${name}`, `.type ${name}, ${data ? "%object" : "%function"}`, `${name}:`);
    versions.set(version, [...(versions.get(version) ?? []), name]);
  }
  const base = join(folder, soname.replace(/(\.so)\.\d+$/, "$1"));
  writeFileSync(`${base}.s`, `${source.join("\n")}\n`);
  const nodes = [...versions].map(([version, names]) => `GLIBC_${version} { ${names.join("; ")}; };`);
  writeFileSync(`${base}.map`, `${nodes.join("\n")}\n`);
  const link = ["-nostdlib", "-shared", `-Wl,-soname,${soname}`, `-Wl,--version-script,${base}.map`];
  run(cc, ...link, "-o", base, `${base}.s`);
}
