import { visible } from "../../visible.ts";
import type { TableOf } from "./table.ts";

/** The most characters of a comment on GitHub. */
export const markdownLimit = 65_536;
/** The most characters of one table, so that a page of several keeps to the limit. */
const tableLimit = 12_000;
const cellLimit = 200;

/** Text of any kind as code: nothing in it is markup, a link, or the mention of a person. */
export function code(text: string): string {
  const line = cut(visible(text.replaceAll(/\s+/g, " ")), cellLimit);
  const longest = [...line.matchAll(/`+/g)].reduce((most, [run]) => Math.max(most, run.length), 0);
  const fence = "`".repeat(longest + 1);
  const pad = line === "" || /^[ `]|[ `]$/.test(line) ? " " : "";
  return `${fence}${pad}${line}${pad}${fence}`;
}

/** A table; rows that do not fit are left out, and counted. */
export function markdownTable({ columns, rows }: TableOf): string {
  const lines = [
    row(columns.map(({ head }) => head)),
    row(columns.map(({ align }) => (align === "right" ? "---:" : "---"))),
  ];
  let length = 0;
  for (const [index, cells] of rows.entries()) {
    const line = row(cells.map(cell));
    length += line.length + 1;
    if (length > tableLimit) {
      lines.push("", `... and ${rows.length - index} more`);
      break;
    }
    lines.push(line);
  }
  return lines.join("\n");
}

function row(cells: readonly string[]): string {
  return `| ${cells.join(" | ")} |`;
}

/** Amounts and plain words stay as they are; all else is set as code. A bar would end the cell even in code, so it is escaped. */
function cell(text: string): string {
  if (/^([+-]?[\d,.]+( ?([KMGTP]iB|B|%|us|ms|s))?|[a-z ]*)$/.test(text)) return text;
  return text.includes("|") ? htmlCode(text) : code(text);
}

function htmlCode(text: string): string {
  const line = cut(visible(text.replaceAll(/\s+/g, " ")), cellLimit);
  return `<code>${line.replaceAll(/[^A-Za-z0-9 ]/gu, (sign) => `&#${sign.codePointAt(0)};`)}</code>`;
}

/** What is folded until somebody asks for it. `summary` is our own text. */
export function details(summary: string, body: string): string {
  return `<details>\n<summary>${summary}</summary>\n\n${body}\n\n</details>`;
}

/** Sections as one page within GitHub's limit: those that do not fit are left out, and it says so. */
export function markdownPage(sections: readonly string[], limit = markdownLimit): string {
  const note = (count: number) =>
    `_${count === 1 ? "A section is" : `${count} sections are`} left out: a comment has at most ${limit} characters._`;
  const reserved = note(sections.length).length + 2;
  const kept: string[] = [];
  let length = 0;
  for (const section of sections) {
    const more = section.length + 2;
    if (length + more > limit - reserved) continue;
    length += more;
    kept.push(section);
  }
  if (kept.length < sections.length) kept.push(note(sections.length - kept.length));
  return kept.join("\n\n");
}

function cut(text: string, most: number): string {
  return text.length <= most ? text : `${[...text].slice(0, most - 3).join("")}...`;
}
