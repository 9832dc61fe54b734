import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

/** The rooms of the C engine: who includes whom, and who calls whom. */
const root = join(import.meta.dirname, "../native/src");

/** From the ground up. A room uses itself and what stands before it. */
const floors = [
  "base",
  "kernels",
  "memory",
  "program",
  "flow",
  "host",
  "cuda",
  "wire",
  "identity",
  "round",
  "device",
  "carriers",
];

const files = (readdirSync(root, { recursive: true, encoding: "utf8" }) as string[])
  .filter((path) => /\.[ch]$/.test(path))
  .sort();
const text = new Map(files.map((path) => [path, readFileSync(join(root, path), "utf8")]));
const roomOf = (path: string) => path.split("/")[0]!;
/** A carrier's folder, or the file itself where it stands in a room. */
const folderOf = (path: string) => path.split("/").slice(0, -1).join("/");

interface Arrow {
  readonly from: string;
  readonly to: string;
  readonly what: string;
}

const includes: Arrow[] = files.flatMap((from) =>
  [...text.get(from)!.matchAll(/^#include "([^"]+)"/gm)]
    .filter(([, to]) => to !== "tensorbus.h" && to !== "tensorbus_bus.h")
    .map(([, to]) => ({ from, to: to!, what: `includes ${to}` })),
);

/** Comments and strings are no code. */
function codeOf(path: string): string {
  return text.get(path)!.replace(/\/\*[\s\S]*?\*\/|"(?:\\.|[^"\\])*"/g, " ");
}

/** Functions and tables with a name of their own, and the file that defines each: a line that begins with it. */
const definitions = new Map<string, string>();
for (const path of files.filter((file) => file.endsWith(".c"))) {
  for (const [, name] of codeOf(path).matchAll(
    /^(?!static\b|typedef\b|extern\b|#)[a-z_][\w *]*?[ *](tb_\w+)(?:\([^;{]*\) \{|(?:\[\])? = \{)/gm,
  )) {
    definitions.set(name!, path);
  }
}

const calls: Arrow[] = files.flatMap((from) =>
  [...new Set(codeOf(from).match(/\btb_\w+/g) ?? [])]
    .map((name) => ({ from, to: definitions.get(name) ?? from, what: `uses ${name}` }))
    .filter(({ to }) => to !== from && from.endsWith(".c")),
);

function up({ from, to, what }: Arrow): string[] {
  return floors.indexOf(roomOf(to)) > floors.indexOf(roomOf(from)) ? [`${from} ${what} (${to})`] : [];
}

/** Groups of files that reach each other by includes and calls: Tarjan's components with more than one member. */
function circles(): string[][] {
  const next = new Map(files.map((path) => [path, [] as string[]]));
  for (const { from, to } of [...calls, ...includes]) if (next.has(to)) next.get(from)!.push(to);
  const index = new Map<string, number>();
  const low = new Map<string, number>();
  const open: string[] = [];
  const found: string[][] = [];
  const visit = (path: string): void => {
    index.set(path, index.size);
    low.set(path, index.get(path)!);
    open.push(path);
    for (const other of next.get(path)!) {
      if (!index.has(other)) {
        visit(other);
        low.set(path, Math.min(low.get(path)!, low.get(other)!));
      } else if (open.includes(other)) {
        low.set(path, Math.min(low.get(path)!, index.get(other)!));
      }
    }
    if (low.get(path) === index.get(path)) {
      const circle = open.splice(open.indexOf(path));
      if (circle.length > 1) found.push(circle.sort());
    }
  };
  for (const path of files) if (!index.has(path)) visit(path);
  return found.sort((a, b) => b.length - a.length);
}

describe("rooms of the engine", () => {
  it("are all on a floor", () => {
    expect([...new Set(files.map(roomOf))].sort()).toEqual([...floors].sort());
    expect(files.length).toBeGreaterThan(120);
    expect(definitions.size).toBeGreaterThan(300);
  });

  it("include nothing above them", () => {
    expect(includes.flatMap(up)).toEqual([]);
    // native/cuda has the table that the kernels share with those who launch them.
    expect(includes.filter(({ to }) => !text.has(to) && to !== "../cuda/table.h")).toEqual([]);
  });

  it("call nothing above them", () => {
    expect(calls.flatMap(up)).toEqual([]);
  });

  it("have no circle that joins two of them, and none larger than the state machine of rounds", () => {
    const found = circles();
    expect(found.filter((circle) => new Set(circle.map(folderOf)).size > 1)).toEqual([]);
    expect(roomOf(found[0]![0]!)).toBe("round");
    expect(found[0]!.length).toBeLessThanOrEqual(15);
    for (const circle of found.slice(1)) expect(circle.length).toBeLessThanOrEqual(6);
  });
});

describe("carriers", () => {
  const folders = [...new Set(files.filter((path) => roomOf(path) === "carriers").map(folderOf))].filter(
    (folder) => folder !== "carriers",
  );

  it("know no sibling", () => {
    expect(folders.length).toBeGreaterThanOrEqual(4);
    const across = [...includes, ...calls].filter(
      ({ from, to }) =>
        folders.includes(folderOf(from)) && folders.includes(folderOf(to)) && folderOf(from) !== folderOf(to),
    );
    expect(across).toEqual([]);
  });

  it("are named by their own folder and the registry alone", () => {
    const names = folders.map((folder) => folder.split("/")[1]!);
    // A stream is also what connections carry; the others' names have no second meaning.
    const own = names.filter((name) => name !== "stream").map((name) => `(?:\\w+_)?${name}(?:_\\w+)?`);
    const named = new RegExp(
      `\\b(?:TB_CARR(?:IER|Y)_(?:${names.join("|")})|tb_carrier_(?:${names.join("|")})|${own.join("|")})\\b`,
      "i",
    );
    for (const name of names) expect(`tb_carrier_${name}`).toMatch(named);
    const wrong = files
      .filter((path) => ["flow", "program", "wire", "identity", "round", "device"].includes(roomOf(path)))
      .flatMap(
        (path) =>
          text
            .get(path)!
            .match(named)
            ?.map((name) => `${path}: ${name}`) ?? [],
      );
    expect(wrong).toEqual([]);
  });

  it("are a row of the registry and a bit, the same in C, in TypeScript and in the protocol's page", () => {
    const page = (path: string) => readFileSync(join(root, "../..", path), "utf8");
    const rows = [
      .../#define TB_CARRIERS\(row\)([\s\S]*?)\n\n/
        .exec(text.get("carriers/registry.h")!)![1]!
        .matchAll(/\brow\((\w+), (\w+), (\d+)\)/g),
    ].map(([, upper, name, bit]) => ({ upper: upper!, name: name!, bit: Number(bit) }));
    expect(rows.map(({ name }) => `carriers/${name}`).sort(), "rows of carriers/registry.h").toEqual(
      [...folders].sort(),
    );
    expect(rows.filter(({ upper, name }) => upper.toLowerCase() !== name)).toEqual([]);

    const bitsOf = (table: string) => {
      const lines = new RegExp(`const ${table} = \\{([^}]*)\\}`).exec(page("src/ffi/carriers.ts"))![1]!;
      return [...lines.matchAll(/"?([\w-]+)"?: (\d+)/g)].map(
        ([, name, bit]) => [name!, Number(bit)] as const,
      );
    };
    const names = rows.map(({ name }) => name.replaceAll("_", "-"));
    const declared = rows.map(({ bit }, index) => [names[index]!, bit] as const);
    expect(bitsOf("carrierBits").sort(), "carrierBits of src/ffi/carriers.ts").toEqual([...declared].sort());
    const [[, ofTests]] = bitsOf("testBits") as [readonly [string, number]];
    expect(Number(/TB_CARRY_FILE_BIT = (\d+)/.exec(text.get("carriers/registry.h")!)![1])).toBe(ofTests);
    const given = [...declared.map(([, bit]) => bit), ofTests];
    expect(
      given.filter((bit, index) => bit > 1 << 15 || bit & (bit - 1) || given.indexOf(bit) !== index),
    ).toEqual([]);

    const protocol = page("docs/wire-protocol.md");
    expect(/the first that can: ([^.]*)\./.exec(protocol)![1], "the order in docs/wire-protocol.md").toBe(
      names.join(", "),
    );
    const told = /u32 carriers that it uses \(([^;]*);/.exec(protocol)![1]!.split(/,\s+/);
    expect(told.sort(), "the bits in docs/wire-protocol.md").toEqual(
      [...declared].map(([name, bit]) => `${bit} ${name}`).sort(),
    );
    const map = page("docs/architecture.md");
    expect(
      rows.filter(({ name }) => !map.includes(`\`${name}/\``)),
      "docs/architecture.md",
    ).toEqual([]);
  });

  it("can do what their transports say", () => {
    const page = (path: string) => readFileSync(join(root, "../..", path), "utf8");
    const tables = files.flatMap((path) =>
      [...codeOf(path).matchAll(/^const tb_carrier tb_carrier_(\w+) = \{([^}]*)\};/gm)].map(
        ([, name, table]) => ({
          transport: name === "stream" ? "tcp" : name!.replaceAll("_", "-"),
          memory: [...table!.matchAll(/\bTB_MEMORY_(\w+)/g)].map(([, kind]) => kind!.toLowerCase()).sort(),
          crossHost: !/\.same_host = true/.test(table!),
          checksum: /\.checksums = true/.test(table!),
        }),
      ),
    );
    expect(tables.length).toBe(folders.length);
    for (const { transport, ...can } of tables) {
      const source = page(`transports/${transport}/index.ts`);
      const [, memory, crossHost, checksum] =
        /\bmemory: \[(.*)\],\s+crossHost: (\w+),\s+checksum: (\w+),/.exec(source)!;
      const says = {
        memory: [...memory!.matchAll(/"(\w+)"/g)].map(([, kind]) => kind!).sort(),
        crossHost: crossHost === "true",
        checksum: checksum === "true",
      };
      expect(says, transport).toEqual(can);
    }
  });
});

describe("files of the engine", () => {
  it("say first what they are for and which lock they need", () => {
    const says =
      /\b(?:own lock|lock of its own|takes? the session's lock|needs? (?:no|the) lock|takes no lock|lock guards|behind (?:a|the|its own) lock|with(?:out)? (?:a|(?:the|its) session's|the) lock|locks?(?: of this process)? (?:is|are) (?:needed|held|taken))\b/;
    const headOf = (path: string) =>
      /^\/\*[\s\S]*?\*\//.exec(text.get(path)!)?.[0].replace(/\s*\n \*?\s*/g, " ") ?? "";
    expect("/* The door before LMDB's write lock. */").not.toMatch(says);
    const silent = files.filter((path) => path.endsWith(".c") && !says.test(headOf(path)));
    expect(silent).toEqual([]);
  });

  it("have no line longer than native/.clang-format allows", () => {
    const limit = Number(
      /^ColumnLimit: (\d+)$/m.exec(readFileSync(join(root, "../.clang-format"), "utf8"))![1],
    );
    const long = files.flatMap((path) =>
      text
        .get(path)!
        .split("\n")
        .flatMap((line, at) => (line.length > limit ? [`${path}:${at + 1}`] : [])),
    );
    expect(long).toEqual([]);
  });

  it("declare in a header what one file defines, or its parts, or what one folder does", () => {
    const prototype =
      /^(?!static\b|typedef\b|extern\b|#|return\b)[a-z_][\w *]*?[ *](tb_\w+)\([^;{]*\)[^;{]*;/gm;
    const stemOf = (path: string) => path.replace(/\.[ch]$/, "");
    const headers = files.filter((path) => path.endsWith(".h"));
    const declared = headers.flatMap((header) =>
      [...codeOf(header).matchAll(prototype)].map(([, name]) => ({ header, name: name! })),
    );
    expect(declared.length).toBeGreaterThan(250);
    const elsewhere = declared.filter(({ header, name }) => {
      const source = definitions.get(name);
      if (source === undefined) return true;
      const [own, other] = [stemOf(header), stemOf(source)];
      const isPart = other.startsWith(`${own}_`) && !text.has(`${other}.h`);
      const isOfFolder = own === `${folderOf(source)}/${folderOf(source).split("/").at(-1)}`;
      return !(own === other || isPart || own.startsWith(`${other}_`) || isOfFolder);
    });
    expect(
      elsewhere.map(({ header, name }) => `${header} declares ${name} of ${definitions.get(name)}`),
    ).toEqual([]);
  });
});
