import Table from "cli-table3";
import type { Output } from "./output.ts";

export interface Column {
  readonly head: string;
  /** Numbers stand at the right. */
  readonly align?: "left" | "right";
}

/** A table as data. */
export interface TableOf {
  readonly columns: readonly Column[];
  readonly rows: readonly (readonly string[])[];
}

/** Rows below a line of headings, without rules: as readable in a log as on a terminal. */
export function formatTable(
  output: Output,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  const table = new Table({
    head: columns.map(({ head }) => output.colors.dim(head)),
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

/** Labels and values, one a line. */
export function formatFields(
  output: Output,
  fields: readonly (readonly [label: string, value: string])[],
): string {
  const width = Math.max(...fields.map(([label]) => label.length));
  return fields.map(([label, value]) => `  ${output.colors.dim(label.padEnd(width))}  ${value}`).join("\n");
}

function trimLines(text: string): string {
  return text
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}
