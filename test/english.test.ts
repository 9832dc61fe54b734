import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

/** What a check can hold of the language of comments, messages and pages; CONTRIBUTING.md has the rest. */
const root = join(import.meta.dirname, "..");

/** Written by others, or exactly as others write it. */
const foreign =
  /^(test\/golden|test\/.*\/fixtures|schema|native\/cuda\/vendor)\/|package-lock\.json$|\.(?:bin|gz|ptx)$/;
/** This file names what it looks for. */
const self = "test/english.test.ts";

const files = execFileSync("git", ["ls-files", "-z"], { cwd: root, encoding: "utf8" })
  .split("\0")
  .filter(
    (path) => /\.(?:ts|tsx|mjs|js|c|h|cu|py|md|yaml|yml)$/.test(path) && !foreign.test(path) && path !== self,
  );
const text = new Map(files.map((path) => [path, readFileSync(join(root, path), "utf8")]));

const isPage = (path: string) => path.endsWith(".md");

/** What others read: of tests, benchmarks and scripts only single words are looked at. */
const isProduct = (path: string) =>
  /^(?:src|assembly|native|python|transports|docs|examples)\/|^[A-Z]+\.md$/.test(path);

/** The comments of a file, or the paragraphs of a page, each without its marks and in one line. */
function proseOf(path: string): string[] {
  const source = text.get(path)!;
  if (isPage(path))
    return source
      .replace(/```[\s\S]*?```|^#+ .*$/gm, "")
      .split(/\n\s*\n|\n(?=[-*|#] )/)
      .map(oneLine);
  if (path.endsWith(".py") || /\.ya?ml$/.test(path)) {
    const docstrings = [...source.matchAll(/"""([\s\S]*?)"""/g)].map(([, body]) => body!);
    const comments = [...source.matchAll(/(?:^[ \t]*#.*\n?)+|[ \t]{2}#.*$/gm)].map(([block]) => block);
    return [...docstrings, ...comments].map(oneLine);
  }
  const comments = source.matchAll(/\/\*[\s\S]*?\*\/|(?:^[ \t]*\/\/.*\n?)+|[ \t]\/\/ .*$/gm);
  return [...comments].map(([block]) => oneLine(block!));
}

const proseOfProduct = (path: string) => (isProduct(path) ? proseOf(path) : []);

function oneLine(block: string): string {
  return block
    .split("\n")
    .map((line) => line.replace(/^[ \t]*(?:\/\*\*?|\*\/|\*|\/\/|#+)?[ \t]*/, "").replace(/\*\/[ \t]*$/, ""))
    .join(" ")
    .replace(/^[-–— ]+/, "")
    .trim();
}

function found(pattern: RegExp, of: (path: string) => readonly string[]): string[] {
  return files.flatMap((path) =>
    of(path).flatMap((prose) => [...prose.matchAll(pattern)].map(([words]) => `${path}: ${words}`)),
  );
}

describe("the language", () => {
  it("reads comments and pages of all parts", () => {
    const parts = ["src/", "assembly/", "native/src/", "python/src/", "transports/", "docs/", "test/"];
    for (const part of parts) {
      const prose = files.filter((path) => path.startsWith(part)).flatMap(proseOf);
      expect(prose.filter((line) => line.length > 20).length, part).toBeGreaterThan(40);
    }
    expect(oneLine("/**\n * Two lines,\n * one sentence.\n */")).toBe("Two lines, one sentence.");
  });

  it("says cannot", () => {
    expect(found(/\bcan not\b.{0,20}/gi, (path) => [text.get(path)!])).toEqual([]);
  });

  it("says what is missing", () => {
    expect(found(/\bwhat lacks\b.{0,20}/gi, proseOfProduct)).toEqual([]);
  });

  it("begins no comment with a part of a sentence", () => {
    expect(found(/^(?:Of|Who|Where|Whether) (?!.*\?$).{0,60}/g, proseOfProduct)).toEqual([]);
  });

  it("begins no comment behind code or in a line with one either", () => {
    const fragment = /(?:\/\*\*?|\/\/) (?:of|where) .{0,60}/g;
    const ours = (path: string) =>
      /^(?:src|assembly|transports|native\/(?:src|include|cuda))\//.test(path) ? [text.get(path)!] : [];
    expect("int fd; /* of the file */").toMatch(fragment);
    expect(found(fragment, ours)).toEqual([]);
  });

  it("says in messages what something is not, and what there is no memory for", () => {
    const unclear =
      /["`][^"`\n]*(?<![Tt]here )\b(?:is no (?!longer\b|more\b|such\b|room\b|other\b)[A-Za-z]+|none of this version|(?:is|are) none\b)[^"`\n]*/g;
    expect("`it is no number`").toMatch(unclear);
    expect("`there is no mesh dimension`").not.toMatch(unclear);
    const code = (path: string) =>
      /^(?:src|assembly|transports|native\/src)\/.*\.(?:ts|tsx|c|h)$/.test(path)
        ? [text.get(path)!.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "")]
        : [];
    expect(found(unclear, code)).toEqual([]);
    const noun = /\bTB_ENO_MEMORY,[^;"]*?"(?!no memory for |[^"]*\bcannot\b)[^"]*"/g;
    expect('tb_fail(err, TB_ENO_MEMORY, -1, 0, "a list of %u moves", n)').toMatch(noun);
    expect(found(noun, code)).toEqual([]);
  });

  it("says if where a condition is meant", () => {
    const condition =
      /(?:\b(?:NULL|[Tt]rue|[Ff]alse|[Uu]ndefined|None|[Ee]mpty|[Tt]hrows|[Aa]lso|[Oo]nly)|`undefined`|`{0,2}(?:TB_[A-Z_]+|[A-Z][A-Za-z]*Error)`{0,2}) where .{0,30}/g;
    expect(found(condition, proseOfProduct)).toEqual([]);
    expect(found(/(?<![a-z] )\bwhere (?:that|it|this) is not (?:known|given|so|there)\b/g, proseOf)).toEqual(
      [],
    );
  });
});

/** Words that once meant what another word means now: the table stands in docs/architecture.md. */
const retired: readonly (readonly [RegExp, string])[] = [
  [/\btb_graph\w*/g, "transfer"],
  [/\btb_side\b/g, "exchange"],
  [/\btb_(?:session_place|wire_host)\b/g, "identity"],
  [/\btb_transport_kind\b/g, "tb_backend_kind"],
  [/\bAgentPost\w*/g, "intake"],
  [/\bDeadline as Deadlines\b/g, "Deadline"],
  [/\bPassenger\w*/g, "a client's order"],
  [/\b(?:tensor|mesh) groups?\b/gi, "mesh, or pattern"],
  [/\b(?:key-value|kv) database\b/gi, "store"],
  [/\bworld rank\b/gi, "rank"],
  [/\bparticipants?\b/gi, "rank"],
  [/\bcoordinators?\b/gi, "the rank that leads"],
  [/\b(?:checkpoint|model) shards?\b/gi, "a file of a checkpoint"],
  [/\b(?:send|recv|receive) buffers?\b/gi, "region, or staging memory"],
];

describe("the words", () => {
  it("are the ones of the table", () => {
    const wrong = retired.flatMap(([pattern, word]) =>
      found(pattern, (path) =>
        path.startsWith("docs/adr/") || path === "CHANGELOG.md" ? [] : [text.get(path)!],
      ).map((where) => `${where}: say ${word}`),
    );
    expect(wrong).toEqual([]);
  });

  it("of the table are those that the code uses", () => {
    const page = text.get("docs/architecture.md")!;
    const table = page.slice(page.indexOf("| word | meaning |"), page.indexOf("## Where things stand"));
    const words = [...table.matchAll(/^\| ([^|]+) \|/gm)]
      .flatMap(([, cell]) => cell!.replace(/\(C: .*\)/, "").split(","))
      .map((word) => word.trim())
      .filter((word) => word !== "word" && !word.startsWith("---"));
    expect(words.length).toBeGreaterThan(25);
    const code = files
      .filter((path) => /^(?:src|assembly|native\/src|python\/src|transports)\//.test(path))
      .map((path) => text.get(path)!)
      .join("\n")
      .toLowerCase();
    expect(words.filter((word) => !code.includes(word))).toEqual([]);
  });
});
