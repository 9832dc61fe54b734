import Table from "cli-table3";
import type { Output } from "./output.ts";

export interface Column {
  readonly head: string;
  /** Numbers stand at the right. */
  readonly align?: "left" | "right";
  /** Entries may take several lines where the table is wider than the output. */
  readonly wraps?: boolean;
}

/** A table as data. */
export interface TableOf {
  readonly columns: readonly Column[];
  readonly rows: readonly (readonly string[])[];
}

/** Before each column. */
const gap = 2;
/** No column is wrapped to less. */
const leastWidth = 10;

/** Rows below a line of headings, without rules: as readable in a log as on a terminal. */
export function formatTable(
  output: Output,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  const table = new Table({
    head: columns.map(({ head }) => output.colors.dim(head)),
    colWidths: fitColumns(output.width, columns, rows),
    wordWrap: true,
    colAligns: columns.map(({ align }) => align ?? "left"),
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0 },
    chars: {
      top: "",
      "top-mid": "",
      "top-left": "",
      "top-right": "",
      bottom: "",
      "bottom-mid": "",
      "bottom-left": "",
      "bottom-right": "",
      left: "  ",
      "left-mid": "",
      mid: "",
      "mid-mid": "",
      right: "",
      "right-mid": "",
      middle: "  ",
    },
  });
  table.push(...rows.map((row) => [...row]));
  return trimLines(table.toString());
}

/** The widths of all columns: where they are too wide together, those that wrap give way, the widest first. */
function fitColumns(
  width: number,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): number[] {
  const widths = columns.map(({ head }, at) =>
    rows.reduce((most, row) => Math.max(most, row[at]!.length), head.length),
  );
  let excess = widths.reduce((sum, own) => sum + gap + own, -width);
  while (excess-- > 0) {
    const [, widest] = columns.reduce<[number, number]>(
      ([most, place], { wraps }, at) => (wraps && widths[at]! > most ? [widths[at]!, at] : [most, place]),
      [leastWidth, -1],
    );
    if (widest < 0) break;
    widths[widest]!--;
  }
  return widths;
}

/** Labels and values, each on a line of its own; a value that is too long goes on below itself. */
export function formatFields(
  output: Output,
  fields: readonly (readonly [label: string, value: string])[],
): string {
  const width = Math.max(...fields.map(([label]) => label.length));
  const indent = gap + width + gap;
  return fields
    .map(([label, value]) => {
      const lines = wrapWords(value, output.width - indent);
      return `  ${output.colors.dim(label.padEnd(width))}  ${lines.join(`\n${" ".repeat(indent)}`)}`;
    })
    .join("\n");
}

function wrapWords(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1)!;
    if (line === "") lines[lines.length - 1] = word;
    else if (line.length + 1 + word.length <= width) lines[lines.length - 1] = `${line} ${word}`;
    else lines.push(word);
  }
  return lines;
}

function trimLines(text: string): string {
  return text
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}
