import { micromark } from "micromark";
import { gfm, gfmHtml } from "micromark-extension-gfm";
import { describe, expect, test } from "vitest";
import { code, details, markdownLimit, markdownPage, markdownTable } from "../../src/cli/ui/markdown.ts";

/** As GitHub renders it, raw HTML included. */
function render(markdown: string): string {
  return micromark(markdown, {
    allowDangerousHtml: true,
    extensions: [gfm()],
    htmlExtensions: [gfmHtml()],
  });
}

/** The text of the cells of the rows below the heading. */
function cellsOf(markdown: string): string[][] {
  const [, body = ""] = /<tbody>(.*?)<\/tbody>/s.exec(render(markdown)) ?? [];
  return [...body.matchAll(/<tr>(.*?)<\/tr>/gs)].map(([, row]) =>
    [...row!.matchAll(/<td[^>]*>(.*?)<\/td>/gs)].map(([, cell]) => plain(cell!)),
  );
}

function plain(html: string): string {
  const entities: Record<string, string> = { lt: "<", gt: ">", amp: "&", quot: '"' };
  return html
    .replace(/^<code>|<\/code>$/g, "")
    .replaceAll(/&(lt|gt|amp|quot);/g, (_, name: string) => entities[name]!);
}

const hostile = [
  "a | b",
  "a\\|b\\",
  "`tick` and ``two``",
  "`",
  "<script>alert(1)</script>",
  "![x](http://example.com/x.png)",
  "@everyone #1 GH-2 www.example.com a@b.example",
  "**bold** _it_ ~~no~~ [R]",
  "&amp; &lt;",
  "layers.0.__init__",
  "12.3 MiB",
  "-5",
];

describe("Markdown", () => {
  test.each(hostile)("a cell with %s says just that", (text) => {
    const table = markdownTable({
      columns: [{ head: "a" }, { head: "b", align: "right" }],
      rows: [[text, "1"]],
    });
    expect(cellsOf(table)).toEqual([[text, "1"]]);
    const html = render(table);
    expect(html.match(/<(?!\/?(table|thead|tbody|tr|th|td|code)\b)/g)).toBeNull();
  });

  test.each(hostile)("code with %s says just that", (text) => {
    expect(plain(render(code(text)).replace(/^<p>|<\/p>$/g, ""))).toBe(text);
  });

  test("text of several lines is one line, and long text is cut", () => {
    expect(code("a\n\n# b")).toBe("`a # b`");
    expect(code("x".repeat(1000)).length).toBeLessThan(210);
  });

  test("a table that is too long is cut, and says by how much", () => {
    const rows = Array.from({ length: 5000 }, (_, index) => [String(index), "a.name.of.a.tensor"]);
    const table = markdownTable({ columns: [{ head: "n", align: "right" }, { head: "name" }], rows });
    const shown = cellsOf(table).length;
    expect(table.length).toBeLessThan(13_000);
    expect(shown).toBeGreaterThan(100);
    expect(table.endsWith(`\n\n... and ${5000 - shown} more`)).toBe(true);
  });

  test("a page keeps to the limit, leaves out what does not fit, and says so", () => {
    const sections = ["# head", "x".repeat(markdownLimit), "tail", "y".repeat(markdownLimit - 50)];
    const page = markdownPage(sections);
    expect(page.length).toBeLessThanOrEqual(markdownLimit);
    expect(page).toMatch(
      /^# head\n\ntail\n\n_2 sections are left out: a comment has at most 65536 characters\._$/,
    );
    expect(markdownPage(["a", "b"])).toBe("a\n\nb");
    const full = markdownPage(Array.from({ length: 100 }, () => "z".repeat(1000)));
    expect(full.length).toBeLessThanOrEqual(markdownLimit);
    expect(full.length).toBeGreaterThan(markdownLimit - 1200);
  });

  test("what is folded is Markdown too", () => {
    const html = render(details("More", markdownTable({ columns: [{ head: "a" }], rows: [["1"]] })));
    expect(html).toMatch(/<details>\n<summary>More<\/summary>\n<table>.*<\/table>\n<\/details>/s);
  });
});
