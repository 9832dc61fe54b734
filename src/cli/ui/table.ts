import { visibleLine } from "../../visible.ts";
import type { Output } from "./output.ts";

export interface Column {
  readonly head: string;
  /** Numbers stand at the right. */
  readonly align?: "left" | "right";
  /** Entries may take several lines if the table is wider than the output. */
  readonly wraps?: boolean;
  /** It is left out of a narrow output that the table does not fit into: the column with the lowest number first. */
  readonly leaves?: number;
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
/** Below this, columns are left out before cells are broken. */
const narrowWidth = 80;

/** Rows below a line of headings, without rules: as readable in a log as on a terminal. */
export function formatTable(
  output: Output,
  columns: readonly Column[],
  cells: readonly (readonly string[])[],
): string {
  // Names are other people's: a row stays one, and as wide as it looks.
  const rows = cells.map((row) => row.map(visibleLine));
  const kept = output.width < narrowWidth ? keptColumns(output.width, columns, rows) : columns;
  if (kept.length === columns.length) return formatColumns(output, columns, rows);
  const places = kept.map((column) => columns.indexOf(column));
  const shown = formatColumns(
    output,
    kept,
    rows.map((row) => places.map((place) => row[place]!)),
  );
  const left = columns.filter((column) => !kept.includes(column)).map(({ head }) => head);
  const note = wrapWords(`not shown, the terminal is too narrow: ${left.join(", ")}`, output.width - gap);
  return [shown, ...note.map((line) => output.colors.dim(`${" ".repeat(gap)}${line}`))].join("\n");
}

/** Those that fit side by side without broken cells, as far as columns may leave. */
function keptColumns(
  width: number,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): readonly Column[] {
  const widths = new Map(columns.map((column, at) => [column, widthOf(column, at, rows)]));
  const kept = new Set(columns);
  const leaving = columns.filter(({ leaves }) => leaves !== undefined).sort((a, b) => a.leaves! - b.leaves!);
  for (const column of leaving) {
    const whole = [...kept].reduce((sum, each) => sum + gap + widths.get(each)!, 0);
    if (whole <= width) break;
    kept.delete(column);
  }
  return columns.filter((column) => kept.has(column));
}

function widthOf({ head }: Column, at: number, rows: readonly (readonly string[])[]): number {
  return rows.reduce((most, row) => Math.max(most, row[at]!.length), head.length);
}

function formatColumns(
  output: Output,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  const widths = fitColumns(output.width, columns, rows);
  const lines = (cells: readonly string[], paint = (text: string) => text) => {
    const wrapped = cells.map((cell, at) => wrapCell(cell, widths[at]!));
    return Array.from({ length: Math.max(...wrapped.map(({ length }) => length)) }, (_, line) =>
      columns
        .map(({ align }, at) => {
          const text = wrapped[at]![line] ?? "";
          const space = " ".repeat(widths[at]! - text.length);
          return `${" ".repeat(gap)}${align === "right" ? space + paint(text) : paint(text) + space}`;
        })
        .join("")
        .trimEnd(),
    );
  };
  const heads = columns.map(({ head }) => head);
  return [heads, ...rows]
    .flatMap((cells, row) => lines(cells, row === 0 ? output.colors.dim : undefined))
    .join("\n");
}

/** Also within words that are wider than the column, where there is no other way. */
function wrapCell(cell: string, width: number): string[] {
  if (cell.length <= width) return [cell];
  const parts = cell.split(" ").flatMap((word) => cut(word, width));
  return wrapWords(parts.join(" "), width);
}

/** A word in parts that fit, none of which ends within a character. */
function cut(word: string, width: number): string[] {
  const parts = [""];
  for (const character of word) {
    if (parts.at(-1)!.length + character.length > width) parts.push("");
    parts[parts.length - 1] += character;
  }
  return parts;
}

/** The widths of all columns: if they are too wide together, those that wrap give way, the widest first. */
function fitColumns(
  width: number,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): number[] {
  const widths = columns.map((column, at) => widthOf(column, at, rows));
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
      const lines = wrapWords(value.replaceAll("\n", "\\n"), output.width - indent);
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
