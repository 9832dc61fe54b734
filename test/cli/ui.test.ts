import { join } from "node:path";
import { PassThrough, Writable } from "node:stream";
import { describe, expect, test } from "vitest";
import { linkChangeTable, rankChangeTable, totalTable } from "../../src/cli/diff/report.ts";
import { loadPlanned } from "../../src/cli/plan/load.ts";
import { sideTable } from "../../src/cli/plan/tables.ts";
import { formatBytes, formatCount, formatDuration, formatRanks } from "../../src/cli/ui/format.ts";
import { Output, OutputClosed, type OutputStream } from "../../src/cli/ui/output.ts";
import { startProgress } from "../../src/cli/ui/progress.ts";
import { type Column, formatFields, formatTable } from "../../src/cli/ui/table.ts";
import { diffPlans } from "../../src/plan/index.ts";

/** A stream that keeps what is written, as a terminal or not. */
function captured(options: { isTTY?: boolean; columns?: number; environment?: NodeJS.ProcessEnv } = {}) {
  const stream = new PassThrough() as PassThrough & OutputStream;
  Object.assign(stream, { isTTY: options.isTTY ?? false, columns: options.columns ?? 100 });
  let text = "";
  stream.on("data", (data: Buffer) => {
    text += data.toString();
  });
  return { output: new Output(stream, options.environment ?? {}), text: () => text };
}

describe("numbers for people", () => {
  test("bytes, counts, times", () => {
    expect([0, 1023, 1024, 10 * 1024, 1023.6 * 2 ** 20, 5n * 2n ** 40n].map(formatBytes)).toEqual([
      "0 B",
      "1023 B",
      "1.00 KiB",
      "10.0 KiB",
      "1.00 GiB",
      "5.00 TiB",
    ]);
    expect([1234567, 12n].map(formatCount)).toEqual(["1,234,567", "12"]);
    expect([5e-6, 0.0123, 4.56, 200].map(formatDuration)).toEqual([
      "5.00 us",
      "12.3 ms",
      "4.56 s",
      "3 min 20 s",
    ]);
  });

  test("ranks, as ranges where they are", () => {
    expect(formatRanks([0, 1, 2, 3])).toBe("0..3");
    expect(formatRanks([4, 5, 6, 9])).toBe("4..6, 9");
    expect(formatRanks([0, 8, 16, 24])).toBe("0..24 by 8");
    expect(formatRanks([3])).toBe("3");
    expect(formatRanks([1, 5])).toBe("1, 5");
    expect(formatRanks([3, 2, 1])).toBe("3, 2, 1");
    expect(formatRanks([])).toBe("");
    expect(formatRanks([1, 5, 6, 20, 22, 25, 40, 44])).toMatch(/^1, 5\.\.6, 20, 22, …$/);
  });
});

describe("output", () => {
  test("has colours on a terminal only, and not where they are unwanted", () => {
    const red = (options: Parameters<typeof captured>[0]) => {
      const { output } = captured(options);
      return output.render(output.colors.red("x"));
    };
    expect(red({ isTTY: true })).toBe("\u001B[31mx\u001B[39m");
    expect(red({ isTTY: false })).toBe("x");
    expect(red({ isTTY: true, environment: { NO_COLOR: "1" } })).toBe("x");
    expect(red({ isTTY: true, environment: { TERM: "dumb" } })).toBe("x");
  });

  test("waits while the reader is behind, and leaves no listeners", async () => {
    const releases: (() => void)[] = [];
    const stream = new Writable({
      highWaterMark: 4,
      write: (_data, _encoding, done) => void releases.push(done),
    });
    const output = new Output(stream, {});
    const before = stream.listenerCount("close");
    let written = false;
    const writing = output.write("a long text").then(() => {
      written = true;
    });
    await new Promise(setImmediate);
    expect(written).toBe(false);
    releases[0]!();
    await writing;
    expect(written).toBe(true);
    expect(stream.listenerCount("close")).toBe(before);
  });

  test("ends quietly when the reader goes away, loudly when anything else fails", async () => {
    for (const [code, expected] of [
      ["EPIPE", OutputClosed],
      ["EIO", Error],
    ] as const) {
      const stream = new Writable({
        write: (_data, _encoding, done) => done(Object.assign(new Error(code), { code })),
      });
      const output = new Output(stream, {});
      await output.write("a").catch(() => undefined);
      await new Promise(setImmediate);
      const error = await output.write("b").catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(expected);
      expect(error instanceof OutputClosed).toBe(code === "EPIPE");
    }
  });
});

describe("tables", () => {
  test("align numbers to the right and end lines without spaces", () => {
    const { output } = captured();
    const table = formatTable(
      output,
      [{ head: "name" }, { head: "bytes", align: "right" }, { head: "note" }],
      [
        ["a", "1", ""],
        ["long name", "1,000", "x"],
      ],
    );
    expect(table.split("\n")).toEqual([
      "  name       bytes  note",
      "  a              1",
      "  long name  1,000  x",
    ]);
    expect(
      formatFields(output, [
        ["a", "1"],
        ["long", "2"],
      ]),
    ).toBe("  a     1\n  long  2");
  });
});

test("a cell that is wider than its column goes on below, within a word if it must, and loses nothing", () => {
  const { output } = captured({ columns: 40, isTTY: true, environment: { NO_COLOR: "1" } });
  const table = formatTable(
    output,
    [{ head: "name" }, { head: "layouts", wraps: true }, { head: "bytes", align: "right" }],
    [
      ["模型", "R R S(0) R", "1"],
      ["b", "S(0;1024,1024,1024,1024,1024) -> R", "22"],
    ],
  );
  expect(table.split("\n")).toEqual([
    "  name  layouts                    bytes",
    "  模型    R R S(0) R                     1",
    "  b     S(0;1024,1024,1024,1024,1     22",
    "        024) -> R",
  ]);
});

test("a word in which no line may break, and characters of two units, are broken and kept whole", () => {
  const { output } = captured({ columns: 40, isTTY: true, environment: { NO_COLOR: "1" } });
  for (const cell of [
    `${"a\u00a0".repeat(60)}b`,
    "😀".repeat(60),
    "a😀".repeat(45),
    `${"全\u3000".repeat(60)}x`,
  ]) {
    const table = formatTable(output, [{ head: "name", wraps: true }], [[cell]]);
    const lines = table.split("\n").slice(1);
    expect(lines.length).toBeGreaterThan(1);
    // Half of a character has no UTF-8.
    for (const line of lines) expect(Buffer.from(line).toString()).toBe(line);
    const shown = lines.map((line) => line.slice(2)).join("");
    expect(shown.replaceAll(/\s/g, "")).toBe(cell.replaceAll(/\s/g, ""));
  }
});

describe("narrow tables", () => {
  const columns: Column[] = [
    { head: "name" },
    { head: "kind of thing", leaves: 1 },
    { head: "layouts", wraps: true, leaves: 2 },
    { head: "bytes", align: "right" },
  ];
  const rows = [["a", "something", "[S(0), R, R] -> [R, S(1), R]", "1,000"]];
  const narrow = (width: number) =>
    captured({ columns: width, isTTY: true, environment: { NO_COLOR: "1" } }).output;
  const linesAt = (width: number) => formatTable(narrow(width), columns, rows).split("\n");

  test("leave columns out, those that say least first, and name them", () => {
    expect(linesAt(60)).toEqual([
      "  name  kind of thing  layouts                       bytes",
      "  a     something      [S(0), R, R] -> [R, S(1), R]  1,000",
    ]);
    expect(linesAt(50)).toEqual([
      "  name  layouts                       bytes",
      "  a     [S(0), R, R] -> [R, S(1), R]  1,000",
      "  not shown, the terminal is too narrow: kind of",
      "  thing",
    ]);
    expect(linesAt(40)).toEqual([
      "  name  bytes",
      "  a     1,000",
      "  not shown, the terminal is too narrow:",
      "  kind of thing, layouts",
    ]);
  });

  test("of sides, of what changed and of totals fit into 40 columns", async () => {
    const spec = (name: string) => loadPlanned(join(import.meta.dirname, "../../examples/specs", name));
    const [before, after] = await Promise.all([spec("fsdp2-tp.json"), spec("llama-3-8b.yaml")]);
    const diff = diffPlans(before.plan, after.plan);
    const { ranks } = after.plan.stats();
    const tables = [
      sideTable([after.spec.source, after.spec.target], ranks),
      totalTable({ before, after, diff }),
      rankChangeTable(diff.ranks),
      linkChangeTable(diff.links),
    ];
    for (const table of tables) {
      expect(table.rows.length).toBeGreaterThan(0);
      const lines = formatTable(narrow(40), table.columns, table.rows).split("\n");
      expect(lines.filter((line) => line.length > 40)).toEqual([]);
      expect(lines.join("\n")).toContain("not shown");
    }
  });
});

describe("progress", () => {
  test("is a line at every tenth where there is no terminal", () => {
    const { output, text } = captured();
    const progress = startProgress(output, { label: "moving", total: 2000, unit: "bytes" });
    for (let done = 0; done <= 2000; done += 50) progress.update(done);
    progress.stop();
    const lines = text().trimEnd().split("\n");
    expect(lines).toHaveLength(10);
    expect(lines[0]).toMatch(/^ {2}moving {2}10% {2}200 B of 1\.95 KiB/);
    expect(lines.at(-1)).toMatch(/^ {2}moving 100% {2}1\.95 KiB of 1\.95 KiB/);
    expect(text()).not.toContain("\u001B");
  });

  test("is a bar on a terminal", () => {
    const { output, text } = captured({ isTTY: true, environment: { NO_COLOR: "1" } });
    const progress = startProgress(output, { label: "moving", total: 10, unit: "items" });
    progress.update(5);
    progress.stop();
    expect(text()).toMatch(/moving █{15}░{15} {2}50% {2}5 of 10/);
  });

  test("of nothing is complete", () => {
    const { output, text } = captured();
    startProgress(output, { label: "moving", total: 0, unit: "items" }).stop();
    expect(text()).toMatch(/^ {2}moving 100% {2}0 of 0/);
  });
});
