// Makes what is published, in build/packages: one package of npm for each platform's native library, and `tensorbus`, which
// names them as optional dependencies and knows the digest of each library. The packages of a commit have the same bytes
// wherever they are made by the same compilers. `--platform linux-x64` makes one platform's alone, for tests.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { buildNative, compilerOf, glibcFloor, platforms } from "./native.mjs";

const root = join(import.meta.dirname, "../..");
export const packagesFolder = join(root, "build/packages");

const read = (path) => readFileSync(join(root, path), "utf8");
const json = (value) => `${JSON.stringify(value, undefined, 2)}\n`;
export const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

/**
 * What the package has besides dist/: the sources of the native library, for those who build it; documents, since README and
 * docs link to each other; and the examples, which import the package by its name.
 */
const shipped = [
  "README.md",
  "LICENSE",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "docs",
  "examples",
  "schema",
  "scripts/install-native.mjs",
  // Makes the kernels if a build had no nvcc: doctor names it.
  "scripts/build-cuda.mjs",
  "native/Makefile",
  "native/include",
  "native/src",
  "native/cuda",
  // The page of each folder: the map of the code leads there.
  ":(glob)**/README.md",
];

/** Builds dist/ and all packages; the files made, by the names of packages. */
export function assemble(names = Object.keys(platforms)) {
  rmSync(packagesFolder, { recursive: true, force: true });
  const staging = join(packagesFolder, "staging");
  const made = {};
  const release = {};
  for (const platform of names) {
    const name = `@tensorbus/${platform}`;
    const folder = join(staging, platform);
    const library = stagePlatform(name, platform, folder);
    release[platform] = { package: name, sha256: sha256(library) };
    made[name] = pack(folder);
  }
  stageMain(join(staging, "tensorbus"), release);
  made.tensorbus = pack(join(staging, "tensorbus"));
  rmSync(staging, { recursive: true });
  return { made, release };
}

function stagePlatform(name, platform, folder) {
  const { version, license } = JSON.parse(read("package.json"));
  mkdirSync(folder, { recursive: true });
  const library = join(folder, "libtensorbus.so");
  buildNative(platform, join(root, "native"), library);
  cpSync(join(root, "LICENSE"), join(folder, "LICENSE"));
  const about = `The native library of tensorbus for ${platform}, glibc ${glibcFloor} or newer`;
  writeFileSync(
    join(folder, "README.md"),
    `# ${name}\n\n${about}. Install \`tensorbus\`, which brings it.\n\nBuilt by ${compilerOf(platform)} from the ` +
      `sources in \`tensorbus/native\`: \`npm run package\` in a clone gives the same bytes.\n`,
  );
  writeFileSync(
    join(folder, "package.json"),
    json({
      name,
      version,
      description: `${about}.`,
      license,
      os: ["linux"],
      cpu: [platforms[platform].cpu],
      libc: ["glibc"],
      // Programs that keep packages in archives must lay this one out as files: a library is loaded by its path.
      preferUnplugged: true,
    }),
  );
  return library;
}

function stageMain(folder, release) {
  execFileSync(process.execPath, [join(root, "scripts/build.mjs")], { cwd: root, stdio: "inherit" });
  const [dist] = JSON.parse(read("build/dist.json"));
  const committed = execFileSync("git", ["ls-files", "-z", "--", ...shipped], {
    cwd: root,
    encoding: "utf8",
  });
  for (const file of [...dist.map((path) => `dist/${path}`), ...committed.split("\0")]) {
    if (file === "" || !existsSync(join(root, file))) continue;
    mkdirSync(join(folder, dirname(file)), { recursive: true });
    cpSync(join(root, file), join(folder, file));
  }
  writeFileSync(join(folder, "native/prebuilt.json"), json(release));
  // What only a clone can do is left out: scripts, the tools that they need, and which files npm would pack.
  const {
    scripts,
    devDependencies: _,
    overrides: __,
    files: ___,
    ...manifest
  } = JSON.parse(read("package.json"));
  const optionalDependencies = Object.fromEntries(
    Object.values(release).map(({ package: name }) => [name, manifest.version]),
  );
  const { install } = scripts;
  writeFileSync(
    join(folder, "package.json"),
    json({ ...manifest, scripts: { install }, optionalDependencies }),
  );
}

/** npm gives every file of an archive one time and one owner. */
function pack(folder) {
  const options = ["--pack-destination", packagesFolder, "--ignore-scripts", "--json"];
  const said = JSON.parse(execFileSync("npm", ["pack", ...options], { cwd: folder, encoding: "utf8" }));
  const [{ filename }] = Array.isArray(said) ? said : Object.values(said);
  return join(packagesFolder, basename(filename.replace("@", "").replace("/", "-")));
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values } = parseArgs({ options: { platform: { type: "string", multiple: true } } });
  const { made } = assemble(values.platform);
  const lines = Object.values(made).map((path) => `${sha256(path)}  ${basename(path)}\n`);
  writeFileSync(join(packagesFolder, "SHA256SUMS"), lines.join(""));
  process.stdout.write(lines.join(""));
}
