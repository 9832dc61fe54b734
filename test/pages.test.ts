import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { describe, expect, it } from "vitest";

/** What pages for people name is there. */
const root = join(import.meta.dirname, "..");
const tracked = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
}).split("\0");

describe("the map", () => {
  it("names every folder of the sources", () => {
    const map = readFileSync(join(root, "docs/architecture.md"), "utf8");
    const folders = ["src", "src/bus", "src/plan", "native/src"].flatMap((folder) =>
      readdirSync(join(root, folder), { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map(({ name }) => name),
    );
    expect(folders.length).toBeGreaterThan(25);
    expect(folders.filter((name) => !map.includes(`${name}/`))).toEqual([]);
  });

  it("and the pages of folders name only files that there are", () => {
    const named = tracked
      .filter((path) =>
        /^docs\/(?:architecture|adding-.*)\.md$|^CONTRIBUTING\.md$|^(?!examples|python).+\/README\.md$/.test(
          path,
        ),
      )
      .flatMap((page) =>
        [...readFileSync(join(root, page), "utf8").matchAll(/`([\w./-]+\.(?:ts|tsx|mjs|c|h))`/g)].map(
          ([, path]) => ({
            page,
            path: path!,
          }),
        ),
      )
      .filter(({ path }) => !/NAME|^rank\.mjs$/.test(path));
    expect(named.length).toBeGreaterThan(150);
    const missing = named.filter(
      ({ path }) => !tracked.some((known) => known === path || known.endsWith(`/${path}`)),
    );
    expect(missing.map(({ page, path }) => `${page}: ${path}`)).toEqual([]);
  });
});

describe("pages", () => {
  const pages = tracked.filter((path) => path.endsWith(".md") && !path.startsWith("test/golden/"));
  const here = (path: string) => existsSync(join(root, path));
  /** Made by a build, or named as an example. */
  const made = /^(?:native\/build|dist|build|bench\/results)\/|NAME|RANK|[*{<…]/;

  it("lead to files that there are", () => {
    const links = pages.flatMap((page) =>
      [...readFileSync(join(root, page), "utf8").matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
        .map(([, target]) => target!)
        .filter((target) => !/^[a-z]+:/.test(target))
        .map((target) => ({ page, target: normalize(join(dirname(page), target)) })),
    );
    expect(links.length).toBeGreaterThan(100);
    expect(
      links.filter(({ target }) => !here(target)).map(({ page, target }) => `${page}: ${target}`),
    ).toEqual([]);
  });

  it("name files and folders that there are", () => {
    const areas = "src|native|test|assembly|python|transports|scripts|bench|docs|examples";
    const named = pages.flatMap((page) =>
      [...readFileSync(join(root, page), "utf8").matchAll(new RegExp(`\`((?:${areas})/[^\`\\s]*)\``, "g"))]
        .map(([, path]) => ({ page, path: path!.replace(/[#:].*$/, "") }))
        .filter(({ path }) => !made.test(path)),
    );
    expect(named.length).toBeGreaterThan(100);
    const missing = named.filter(
      ({ path }) => !here(path) && !here(`src/${path}`) && !here(`native/${path}`),
    );
    expect(missing.map(({ page, path }) => `${page}: ${path}`)).toEqual([]);
  });

  it("stand in each large folder", () => {
    const files = tracked.filter((path) => path !== "" && here(path));
    const parents = (path: string) =>
      path.split("/").flatMap((_, depth, parts) => (depth === 0 ? [] : [parts.slice(0, depth).join("/")]));
    /** Pages are `docs` itself, and README.md of the root names each example. */
    const isPart = (folder: string) =>
      /^(?:src\/)?[^/]+$/.test(folder) && !/^(?:src|docs|examples)$/.test(folder);
    const large = [...new Set(files.flatMap(parents))].filter((folder) => {
      const inside = files.filter((path) => path.startsWith(`${folder}/`));
      const own = inside.filter((path) => dirname(path) === folder);
      const isTransport = dirname(folder) === "transports";
      return (
        isTransport || own.length >= 40 || (isPart(folder) && inside.length >= 14 && folder !== "transports")
      );
    });
    expect(large.length).toBeGreaterThan(20);
    expect(large.filter((folder) => !here(`${folder}/README.md`))).toEqual([]);
  });
});
