import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { join, relative } from "node:path";
import { describe, expect, it } from "vitest";
import { transportFolders } from "../src/cli/ui/transport-option.ts";
import {
  filesOf,
  generated,
  type Import,
  importsOf,
  readSource,
  root,
  type SourceFile,
} from "./kit/source-files.ts";

/** The folders and import directions of the design. */

const source = ["src", "transports", "assembly"]
  .flatMap((folder) => filesOf(folder, [".ts", ".tsx"]))
  .filter((path) => !generated.includes(path))
  .map(readSource);

/** The part of the design that a file belongs to: a folder of src, or a file that stands alone there. */
function areaOf(path: string): string {
  const match = /^src\/([^/]+?)(?:\.ts|\/.*)$/.exec(path);
  return match?.[1] ?? path.split("/")[0]!;
}

const anything = [
  "visible",
  "errors",
  "deadline",
  "folders",
  "layout",
  "plan",
  "ffi",
  "memory",
  "store",
  "transport",
  "exec",
  "model",
];

/** What each area of src may import besides itself. */
const directions: Readonly<Record<string, readonly string[]>> = {
  visible: [],
  errors: [],
  deadline: ["errors"],
  folders: [],
  layout: ["errors"],
  plan: ["errors", "layout"],
  ffi: ["visible", "errors", "deadline", "layout"],
  memory: ["errors", "deadline", "layout", "ffi"],
  store: ["errors", "deadline"],
  transport: ["errors", "deadline", "layout", "ffi", "memory", "store", "plan"],
  exec: ["errors", "deadline", "layout", "memory", "transport", "plan"],
  model: ["errors", "deadline", "layout", "ffi", "plan"],
  checkpoint: ["errors", "deadline", "folders", "layout", "ffi", "memory", "plan", "model"],
  bus: anything,
  index: [...anything, "bus"],
  cli: [...anything, "checkpoint", "bus", "index"],
};

/**
 * The rooms of the large areas: what each may import of the others. "." is the files that stand in the area's own folder,
 * its doors.
 */
const rooms: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  bus: {
    // Client and agent meet in the queue, and never import each other.
    client: ["queue", "process", "tensor"],
    agent: ["batch", "door", "pair", "queue", "process", "tensor"],
    // A client at the socket is known by its commands, as one of the queue is.
    door: ["pair", "queue", "process"],
    batch: ["pair", "queue", "process", "tensor"],
    pair: ["queue", "process"],
    queue: ["process"],
    process: [],
    tensor: [],
  },
  plan: {
    ".": ["explain", "schedule", "verify", "planner", "input"],
    explain: ["planner", "input"],
    schedule: ["planner", "input"],
    verify: ["input"],
    planner: ["input"],
    input: [],
  },
  cli: {
    ".": ["agent", "demo", "diff", "doctor", "explain", "layout", "plan", "reshard", "ui"],
    agent: ["transports", "ui"],
    demo: ["reshard", "ui"],
    diff: ["plan", "budget", "ui"],
    doctor: ["transports", "ui"],
    explain: ["plan", "ui"],
    layout: ["model", "ui"],
    plan: ["report", "budget", "model", "ui"],
    report: ["budget", "ui"],
    reshard: ["transports", "ui"],
    budget: ["ui"],
    model: ["ui"],
    transports: ["ui"],
    ui: [],
  },
};

/** The room of an area that a file stands in: its folder there, itself if `rooms` names it, else "."; undefined outside. */
function roomOf(area: string, path: string): string | undefined {
  if (!path.startsWith(`src/${area}/`)) return undefined;
  const [first, ...rest] = path.slice(`src/${area}/`.length).split("/");
  if (rest.length > 0) return first;
  const name = first!.replace(/\.ts$/, "");
  return name in rooms[area]! ? name : ".";
}

/** The sets of files that reach each other by imports which are there at run time, each sorted. */
function circles(files: readonly SourceFile[]): string[][] {
  const reachedFrom = new Map<string, Set<string>>();
  const byPath = new Map(files.map((file) => [file.path, file]));
  const reach = (path: string): Set<string> => {
    const reached = new Set<string>();
    const open = [path];
    for (let at = open.pop(); at !== undefined; at = open.pop()) {
      for (const { target, typeOnly } of byPath.get(at)?.imports ?? []) {
        if (typeOnly || reached.has(target)) continue;
        reached.add(target);
        open.push(target);
      }
    }
    return reached;
  };
  for (const { path } of files) reachedFrom.set(path, reach(path));
  const found = new Map<string, string[]>();
  for (const [path, reached] of reachedFrom) {
    if (!reached.has(path)) continue;
    const circle = [...reached].filter((other) => reachedFrom.get(other)?.has(path)).sort();
    found.set(circle.join(), circle);
  }
  return [...found.values()];
}

/** Where a package, or a global of the engine, may be used. */
const confined: Readonly<Record<string, RegExp>> = {
  koffi: /^src\/ffi\//,
  re2js: /^src\/model\/expression\.ts$/,
  lmdb: /^src\/bus\//,
  commander: /^src\/cli\//,
  "cli-progress": /^src\/cli\//,
  picocolors: /^src\/cli\//,
  rxjs: /^(src\/(exec|transport|bus|cli|index)|transports)\b/,
};

function breaches(rule: (file: SourceFile, imported: Import) => boolean): string[] {
  return source.flatMap((file) =>
    file.imports
      .filter((imported) => rule(file, imported))
      .map(({ target }) => `${file.path} imports ${target}`),
  );
}

describe("import directions", () => {
  it("sees the files and their imports", () => {
    expect(source.length).toBeGreaterThan(30);
    expect(source.flatMap(({ imports }) => imports).length).toBeGreaterThan(100);
    const sample = 'import a, {\n  b,\n} from "./x.ts";\nexport * from "p";\nawait import("q");\nimport "r";';
    expect(importsOf("src/plan/y.ts", sample).map(({ target }) => target)).toEqual([
      "src/plan/x.ts",
      "p",
      "r",
      "q",
    ]);
    const types =
      'import type { A } from "a";\nimport { type B, type C } from "b";\nimport { type D, e } from "c";';
    expect(importsOf("src/y.ts", types).map(({ typeOnly }) => typeOnly)).toEqual([true, true, false]);
  });

  it("src knows its areas", () => {
    const areas = new Set(
      source.filter(({ path }) => path.startsWith("src/")).map(({ path }) => areaOf(path)),
    );
    expect([...areas].filter((area) => !(area in directions))).toEqual([]);
  });

  it("each area of src imports only what stands below it", () => {
    const wrong = breaches((file, imported) => {
      const allowed = directions[areaOf(file.path)];
      if (allowed === undefined || imported.package || !file.path.startsWith("src/")) return false;
      const area = areaOf(imported.target);
      return area !== areaOf(file.path) && !allowed.includes(area);
    });
    expect(wrong).toEqual([]);
  });

  it("the rooms of bus, plan and cli are known, and import only those below them", () => {
    const wrong: string[] = [];
    for (const [area, allowed] of Object.entries(rooms)) {
      const found = new Set(
        source.map(({ path }) => roomOf(area, path)).filter((room) => room !== undefined),
      );
      expect([...found].sort(), `the rooms of src/${area}`).toEqual(Object.keys(allowed).sort());
      wrong.push(
        ...breaches(({ path }, { target, typeOnly }) => {
          const [from, to] = [roomOf(area, path), roomOf(area, target)];
          if (from === undefined || to === undefined || from === to) return false;
          // A type of the area's own files may be named anywhere in it: that joins nothing at run time.
          return !(to === "." && typeOnly) && !allowed[from]!.includes(to);
        }),
      );
    }
    expect(wrong).toEqual([]);
  });

  it("no rooms of an area import each other in a circle", () => {
    for (const allowed of Object.values(rooms)) {
      const open = new Map(Object.entries(allowed));
      const isBottom = ([, below]: [string, readonly string[]]): boolean =>
        !below.some((room) => open.has(room));
      for (let bottom = [...open].find(isBottom); bottom !== undefined; bottom = [...open].find(isBottom)) {
        open.delete(bottom[0]);
      }
      expect([...open.keys()]).toEqual([]);
    }
  });

  it("verify proves a plan by code that shares nothing with the planner", () => {
    const wrong = breaches(
      ({ path }, { target }) =>
        path.startsWith("src/plan/verify/") && /^(src\/plan\/(planner|schedule)|assembly)\//.test(target),
    );
    expect(wrong).toEqual([]);
  });

  it("no file of src, transports or assembly imports itself by way of others", () => {
    expect(circles(source)).toEqual([]);
    const file = (path: string, ...targets: string[]): SourceFile => {
      const imports = targets.map((target) => ({ target, package: false, typeOnly: false }));
      return { path, code: "", lines: 1, imports };
    };
    expect(circles([file("a", "b"), file("b", "c", "d"), file("c", "a"), file("d")])).toEqual([
      ["a", "b", "c"],
    ]);
  });

  it("src imports no transport: the command line loads those that are registered", () => {
    expect(
      breaches(({ path }, { target }) => path.startsWith("src/") && target.startsWith("transports/")),
    ).toEqual([]);
  });

  it("a transport imports the seams below it, and never a sibling", () => {
    const wrong = breaches(({ path }, { target, package: isPackage, typeOnly }) => {
      const own = /^transports\/[^/]+\//.exec(path)?.[0];
      if (own === undefined || isPackage || target.startsWith(own)) return false;
      if (/^src\/(transport|memory|ffi)\/|^src\/(errors|deadline|store\/signed)\.ts$/.test(target))
        return false;
      return !(
        typeOnly && /^src\/(plan\/planner\/program|plan\/input\/types|store\/store)\.ts$/.test(target)
      );
    });
    expect(wrong).toEqual([]);
  });

  it("what all transports share names none of them", () => {
    const names = readdirSync(join(root, "transports")).flatMap((name) => [name, name.replaceAll("-", "_")]);
    // These two are what connections are made of, and what every session has to say.
    const carriers = names.filter((name) => name !== "memory" && name !== "tcp");
    expect(carriers.length).toBeGreaterThanOrEqual(4);
    const named = new RegExp(`\\b\\w*(?:${carriers.join("|")})\\w*\\b`, "gi");
    const wrong = source
      .filter(({ path }) => /^src\/(transport|exec|memory)\//.test(path))
      .flatMap(({ path, code }) => [...code.matchAll(named)].map(([name]) => `${path}: ${name}`));
    expect(wrong).toEqual([]);
  });

  it("each transport is registered, is on the front page, and has a test", () => {
    const read = (path: string) => readFileSync(join(root, path), "utf8");
    const transports = readdirSync(join(root, "transports")).sort();
    const tested = readdirSync(join(root, "test/transport"));
    // Ranks of one process have nothing to choose, and no command line.
    const chosen = transports.filter((name) => name !== "memory");
    expect([...transportFolders].sort(), "the carriers of src/ffi/carriers.ts").toEqual(chosen);
    const missing = [
      ...transports
        .filter((name) => !read("README.md").includes(`](transports/${name}/README.md)`))
        .map((name) => `README.md: ${name}`),
      ...transports
        .filter((name) => !tested.includes(`${name}.test.ts`))
        .map((name) => `test/transport/${name}.test.ts`),
      ...chosen
        .filter((name) => !read("docs/selection.md").includes(`\n| \`${name}\` |`))
        .map((name) => `docs/selection.md: ${name}`),
      ...chosen
        .filter((name) => !existsSync(join(root, `transports/${name}/offer.ts`)))
        .map((name) => `transports/${name}/offer.ts`),
    ];
    expect(missing, "places that docs/adding-a-transport.md names").toEqual([]);
  });

  it("no list of transports is kept beside their registration", () => {
    const names = transportFolders.filter((name) => name !== "tcp" && name !== "shm");
    expect(names.length).toBeGreaterThanOrEqual(3);
    // A name that stands alone in quotes, or a folder that is imported.
    const written = new RegExp(`(["'\`])(?:(?:\\.+/)*transports/)?(?:${names.join("|")})(?:/[^"'\`]*)?\\1`);
    // The registration, each transport's own folder, and the declarations of its library.
    const own = new RegExp(`^(src/ffi/(carriers|${names.join("|")})\\.ts$|transports/)`);
    const files = [
      ...["src", "transports", "scripts", "python/src", "python/agent", "schema", ".ci"].flatMap((folder) =>
        filesOf(folder, [".ts", ".tsx", ".mjs", ".py", ".json", "run"]),
      ),
      "package.json",
      "vitest.config.ts",
    ].filter((path) => !generated.includes(path) && !own.test(path));
    expect(files.length).toBeGreaterThan(300);
    const found = (text: string) => text.split("\n").filter((line) => written.test(line));
    const lists = ['const all = ["tcp", "ucx"];', 'import { nccl } from "../../transports/nccl/index.ts";'];
    const words = ['import { queryUcx } from "../../ffi/ucx.ts";', 'fields.push(["over NCCL", took]);'];
    expect(found([...lists, ...words].join("\n"))).toEqual(lists);
    const wrong = files.flatMap((path) =>
      found(readFileSync(join(root, path), "utf8")).map((line) => `${path}: ${line.trim()}`),
    );
    // A keyword by which the registry of npm finds the package.
    expect(wrong.filter((line) => line !== 'package.json: "nccl",')).toEqual([]);
  });

  it("assembly/ is formatted as Biome formats the rest", { timeout: 60_000 }, () => {
    const script = join(root, "scripts/format-assembly.mjs");
    execFileSync(process.execPath, [script, "--check"], { stdio: ["ignore", "ignore", "inherit"] });
  });

  it("assembly/ imports nothing outside", () => {
    const wrong = breaches(
      ({ path }, { target, package: isPackage }) =>
        path.startsWith("assembly/") && (isPackage || !target.startsWith("assembly/")),
    );
    expect(wrong).toEqual([]);
  });

  it("the planner's door runs without Node.js", () => {
    const byPath = new Map(source.map((file) => [file.path, file]));
    const reached = new Set(["src/plan/index.ts"]);
    const wrong: string[] = [];
    for (const path of reached) {
      for (const { target, package: isPackage, typeOnly } of byPath.get(path)?.imports ?? []) {
        if (typeOnly) continue;
        if (!isPackage) reached.add(target);
        else if (!/^(zod|@noble\/hashes)(\/|$)/.test(target)) wrong.push(`${path} imports ${target}`);
      }
      if (/\b(process|Buffer|__dirname)\b\s*[.[(]/.test(byPath.get(path)?.code ?? ""))
        wrong.push(`${path} uses a global of Node.js`);
    }
    expect(reached.size).toBeGreaterThan(5);
    expect(wrong).toEqual([]);
  });
});

/** The names that a file exports by declaring them, and no file that imports it has. */
function unusedExports(files: readonly SourceFile[]): string[] {
  const importers = new Map<string, Set<SourceFile>>();
  for (const file of files) {
    for (const { target } of file.imports) {
      const path = /\.\w+$/.test(target) ? target : `${target}.ts`;
      importers.set(path, (importers.get(path) ?? new Set()).add(file));
    }
  }
  const declared =
    /^export (?:declare |abstract |async )*(?:type|interface|class|function\*?|const|let|enum) ([\w$]+)/gm;
  return files.flatMap(({ path, code }) => {
    const others = [...(importers.get(path.replace(/\.d\.mts$/, ".mjs")) ?? [])];
    const isUsed = (name: string) => others.some((other) => new RegExp(`\\b${name}\\b`).test(other.code));
    return [...code.matchAll(declared)].flatMap(([, name]) => (isUsed(name!) ? [] : [`${path}: ${name}`]));
  });
}

describe("exports", () => {
  it("are imported by another file, or are what the package, a transport or a bundle is loaded for", () => {
    const sample = (path: string, code: string) => ({ path, code, lines: 1, imports: importsOf(path, code) });
    const pair = [
      sample("a.ts", "export type A = 1;\nexport async function b() {}\nexport const c = 1;"),
      sample("d.ts", 'import { type A } from "./a.ts";\nconst { b } = await import("./a.ts");'),
    ];
    expect(unusedExports(pair)).toEqual(["a.ts: c"]);
    const excepted = [
      // Passed on by "*" by the package's doors.
      /^src\/((plan|model|memory|store)\/index|index|plan\/input\/types)\.ts: /,
      // Loaded by a path that is put together, or in a module's place; called by the WebAssembly module's user.
      /^(transports\/[^/]+\/(index|offer)|bench\/\w+\/index|assembly\/(index|error))\.ts: /,
      /^test\/simulation\/platform\//,
      // A line of the file that it writes.
      /^scripts\/build-wasm\.mjs: plannerWasm$/,
    ];
    const users = ["test", "bench", "scripts", "examples"].flatMap((folder) =>
      filesOf(folder, [".ts", ".tsx", ".mts", ".mjs", ".js"]).map(readSource),
    );
    expect(
      unusedExports([...source, ...users]).filter((name) => !excepted.some((each) => each.test(name))),
    ).toEqual([]);
  });
});

describe("packages", () => {
  it("stay in the folders that the design gives them", () => {
    const wrong = breaches(({ path }, { target, typeOnly }) => {
      const home = confined[target.split("/")[0]!];
      return home !== undefined && !typeOnly && !home.test(path);
    });
    expect(wrong).toEqual([]);
  });

  it("WebAssembly is used in src/plan/ only", () => {
    const users = source.filter(
      ({ path, code }) => path.startsWith("src/") && /\bWebAssembly\s*\.|\.\s*WebAssembly\b/.test(code),
    );
    const plain = users.map(({ path }) => path).filter((path) => !path.startsWith("src/plan/"));
    expect(plain).toEqual([]);
    expect(users.length).toBe(1);
  });

  it("are dependencies, and Node.js is named by node:", () => {
    const { dependencies, devDependencies } = JSON.parse(
      readFileSync(join(root, "package.json"), "utf8"),
    ) as Record<"dependencies" | "devDependencies", Record<string, string>>;
    const wrong = breaches(({ path }, { target, package: isPackage }) => {
      if (!isPackage || path.startsWith("assembly/")) return false;
      const name = target
        .split("/")
        .slice(0, target.startsWith("@") ? 2 : 1)
        .join("/");
      if (target.startsWith("node:")) return !builtinModules.includes(target.slice("node:".length));
      // What pages of reports are made of is bundled into the command line.
      return !(name in dependencies || (path.startsWith("src/cli/report/page/") && name in devDependencies));
    });
    expect(wrong).toEqual([]);
  });
});

describe("files", () => {
  it("export by name", () => {
    expect(source.filter(({ code }) => /^export default\b/m.test(code)).map(({ path }) => path)).toEqual([]);
  });

  it("import files with their extension", () => {
    expect(
      breaches(
        ({ path }, { target, package: isPackage }) =>
          !path.startsWith("assembly/") && !isPackage && !/\.tsx?$/.test(target),
      ),
    ).toEqual([]);
  });

  it("read the wall clock only to say when something was, or whether that is recent, never to wait", () => {
    const readers = source.filter(
      ({ path, code }) => !path.startsWith("test/") && /\bDate\b\s*[.(]/.test(code),
    );
    expect(readers.map(({ path }) => path)).toEqual([
      "src/bus/batch/round-log.ts",
      "src/bus/client/agent-link.ts",
      "src/bus/queue/state.ts",
      "src/cli/start.ts",
    ]);
  });

  it("can be read in one sitting", () => {
    const more = [
      ...filesOf("test", [".ts"]),
      ...filesOf("bench", [".ts", ".mjs"]),
      ...filesOf("scripts", [".mjs"]),
      ...filesOf("native", [".c", ".h"]),
    ];
    const long = [...source, ...more.map(readSource)].filter(({ lines }) => lines > 500);
    expect(long.map(({ path, lines }) => `${relative(root, join(root, path))}: ${lines} lines`)).toEqual([]);
  });
});
