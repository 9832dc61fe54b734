import type { Spec } from "../../model/spec.ts";
import type {
  Change,
  LinkChange,
  OptionChange,
  PlanDiff,
  RankChange,
  SideForm,
  TensorField,
  TensorForm,
  TensorGroup,
} from "../../plan/index.ts";
import { largest } from "../budget/budget.ts";
import type { Planned } from "../plan/load.ts";
import { byteColumns, formatStrategy } from "../plan/tables.ts";
import { formatBytes, formatCount, formatDuration, formatRanks, plural } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { type Column, formatTable, type TableOf } from "../ui/table.ts";

/** Two plans, and how they differ. */
export interface Compared {
  readonly before: Planned;
  readonly after: Planned;
  readonly diff: PlanDiff;
}

/** Longer lists are cut to what changed most. */
const mostRows = 16;

export function formatDiff(output: Output, compared: Compared): string {
  const { colors } = output;
  const { before, after, diff } = compared;
  const head = `${colors.bold(before.spec.file)} -> ${colors.bold(after.spec.file)}`;
  if (diff.equal) return `${head}\n\n  no difference: both plan to ${diff.digest.after}`;
  const totals = totalTable(compared);
  const sections = [
    head,
    formatTable(output, totals.columns, totals.rows),
    ...formatOptions(output, diff),
    ...formatTensors(output, compared),
    ...formatRows(output, "Ranks", "those of which most changed", rankChangeTable(diff.ranks), mostRows),
    ...formatRows(output, "Links", "from rank to rank", linkChangeTable(diff.links), mostRows),
    ...formatRows(output, "Hosts", "from host to host", linkChangeTable(diff.hosts ?? []), mostRows),
  ];
  return sections.join("\n\n");
}

const totalColumns: readonly Column[] = [
  { head: "", wraps: true },
  { head: "before", align: "right" },
  { head: "after", align: "right" },
  { head: "change", align: "right", leaves: 0 },
];

/** What the plans are as wholes, changed or not. */
export function totalTable({ before, after, diff }: Compared): TableOf {
  const [old, now] = [before.plan.stats(), after.plan.stats()];
  const [first, second] = [before.plan.schedule(), after.plan.schedule()];
  const short = (digest: string) => `${digest.slice(0, 8)}...`;
  const sum = (stats: typeof old) => stats.ranks.reduce((total, { sent }) => total + sent, 0n);
  const staging = ({ ranks }: typeof old) =>
    largest(ranks, ({ stagingBytes }) => stagingBytes)?.stagingBytes ?? 0n;
  const rows = [
    ["digest", short(diff.digest.before), short(diff.digest.after), ""],
    countRow("tensors", old.tensors, now.tensors),
    bytesRow("between ranks", { before: sum(old), after: sum(now) }),
    bytesRow("within ranks", { before: old.bytes.copy, after: now.bytes.copy }),
    countRow("chunks", old.chunks, now.chunks),
    countRow("buckets", old.buckets, now.buckets),
    countRow("waves", old.waves, now.waves),
    bytesRow("staging, the most", { before: staging(old), after: staging(now) }),
    ["imbalance", ...[old, now].map(({ imbalance }) => imbalance.toFixed(3)), ""],
  ];
  if (first !== undefined || second !== undefined) {
    const texts = [first, second].map((one) => (one === undefined ? "" : formatDuration(one.makespan / 1e9)));
    const change = first && second && first.makespan > 0 ? percent(second.makespan / first.makespan) : "";
    rows.push(["predicted", ...texts, texts[0] === texts[1] ? "" : change]);
  }
  return { columns: totalColumns, rows };
}

function countRow(name: string, before: number, after: number): string[] {
  const change =
    after === before ? "" : `${after > before ? "+" : "-"}${formatCount(Math.abs(after - before))}`;
  return [name, formatCount(before), formatCount(after), change];
}

function bytesRow(name: string, change: Change<bigint>): string[] {
  return [name, formatBytes(change.before), formatBytes(change.after), formatBytesChange(change)];
}

/** `+1.50 MiB`; nothing if nothing changed. */
function formatBytesChange({ before, after }: Change<bigint>): string {
  if (before === after) return "";
  return before < after ? `+${formatBytes(after - before)}` : `-${formatBytes(before - after)}`;
}

function percent(ratio: number): string {
  return `${ratio >= 1 ? "+" : ""}${((ratio - 1) * 100).toFixed(1)} %`;
}

export function describeOption({ option, before, after }: OptionChange): string {
  const text = (value: unknown): string =>
    value === undefined ? "none" : typeof value === "object" ? shortJson(value) : String(value);
  return `${option}: ${text(before)} -> ${text(after)}`;
}

const mostText = 60;

function shortJson(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > mostText ? `${text.slice(0, mostText)}...` : text;
}

function formatOptions({ colors }: Output, { options, reordered }: PlanDiff): string[] {
  const lines = options.map((change) => `  ${describeOption(change)}`);
  if (reordered) lines.push("  the tensors stand in another order");
  return lines.length === 0 ? [] : [[colors.bold("Options"), ...lines].join("\n")];
}

function formatTensors(output: Output, compared: Compared): string[] {
  const { tensors, unchangedTensors } = compared.diff;
  const { bold, dim } = output.colors;
  if (tensors.length === 0) return [];
  const groups = tensors.slice(0, mostRows).map((group) => {
    const lines = describeGroup(group, compared).map(
      ([name, text]) => `    ${dim(name.padEnd(fieldWidth))}  ${text}`,
    );
    return [`  ${titleOf(group)}`, ...lines].join("\n");
  });
  if (tensors.length > mostRows)
    groups.push(dim(`  ... and ${plural(tensors.length - mostRows, "more group")}`));
  const changed = tensors.reduce((sum, { count }) => sum + count, 0);
  const rest = `  ${formatCount(changed)} changed, ${formatCount(unchangedTensors)} not`;
  return [`${bold("Tensors")}${dim(rest)}\n${groups[0]}`, ...groups.slice(1)];
}

const fieldWidth = "target placements".length;

function titleOf({ change, count, example }: TensorGroup): string {
  return count === 1
    ? `${change}: ${example}`
    : `${change}: ${plural(count, "tensor")}, the first ${example}`;
}

/** The parameter of the target that the first of a group is a part of, if a spec's sides have parameters. */
function describeParameter({ example }: TensorGroup, { before, after }: Compared): [string, string][] {
  const [old, now] = [before, after].map(({ spec }) => parameterOf(spec, example));
  if (old === undefined && now === undefined) return [];
  return [["parameter", old === now ? now! : `${old ?? "none"} -> ${now ?? "none"}`]];
}

/** The name of a planned tensor's parameter on the target. */
function parameterOf({ parts }: Spec, name: string): string | undefined {
  const planned = parts?.joined.parts.find((one) => one.name === name);
  if (parts === undefined || planned === undefined) return undefined;
  return parts.target.parameters[parts.target.parts[planned.target]!.parameter]!.name;
}

/** What changed of a group of tensors: names of fields, and what they were and are. */
export function describeGroup(group: TensorGroup, compared: Compared): [string, string][] {
  const { fields, before, after, deliveredBytes } = group;
  const rows: [string, string][] = describeParameter(group, compared);
  if (before === undefined || after === undefined) {
    const form = (before ?? after)!;
    rows.push(["shape", `${describeShape(form)}, ${describeType(form)}`]);
    rows.push(["layouts", `${describePlacements(form.source)} -> ${describePlacements(form.target)}`]);
    rows.push(["strategy", formatStrategy(form.routing)]);
  } else {
    for (const field of fields) {
      rows.push([
        field.replace(".", " "),
        `${describeField(before, field)} -> ${describeField(after, field)}`,
      ]);
    }
  }
  const change = formatBytesChange(deliveredBytes);
  const { before: old, after: now } = deliveredBytes;
  const bytes = old === now ? formatBytes(now) : `${formatBytes(old)} -> ${formatBytes(now)} (${change})`;
  rows.push(["delivered", bytes]);
  return rows;
}

function describeField(form: TensorForm, field: TensorField): string {
  switch (field) {
    case "shape":
      return describeShape(form);
    case "routing":
      return formatStrategy(form.routing);
    case "pair":
    case "dtype":
    case "targetDtype":
      return form[field];
  }
  const [side, key] = field.split(".") as ["source" | "target", keyof SideForm];
  const of = form[side];
  switch (key) {
    case "placements":
      return describePlacements(of);
    case "mesh":
      return `${of.mesh.shape.join(" x ")} (${formatRanks(of.mesh.ranks)})`;
    case "stridedShard":
      return of.stridedShard ?? "unnamed";
    case "select": {
      if (of.select === undefined) return "all";
      const { index, of: all, dim, sizes } = of.select;
      return `${index} of ${all}${sizes === undefined ? "" : ` (${sizes.join()})`} on dimension ${dim}`;
    }
  }
}

function describeShape({ shape }: TensorForm): string {
  return shape.join(" x ") || "scalar";
}

function describeType({ dtype, targetDtype }: TensorForm): string {
  return dtype === targetDtype ? dtype : `${dtype} -> ${targetDtype}`;
}

function describePlacements({ placements }: SideForm): string {
  return `[${placements.join(", ")}]`;
}

/** Ranks, those whose traffic changed most first; columns in which nothing changed are left out. */
export function rankChangeTable(ranks: readonly RankChange[]): TableOf {
  const distance = ({ before, after }: Change<bigint>) => (before < after ? after - before : before - after);
  const weight = (one: RankChange) => distance(one.sent) + distance(one.received);
  const sorted = [...ranks].sort((a, b) => Number(weight(b) - weight(a)) || a.rank - b.rank);
  const shown = byteColumns.filter(({ key }) => ranks.some((one) => one[key].before !== one[key].after));
  return {
    columns: [
      { head: "rank", align: "right" },
      // The last of them leave first, each with its change.
      ...shown.flatMap(({ head }, place): Column[] => [
        { head, align: "right", ...(place === 0 ? {} : { leaves: shown.length - place }) },
        { head: "by", align: "right", leaves: shown.length - place },
      ]),
    ],
    rows: sorted.map((one) => [
      String(one.rank),
      ...shown.flatMap(({ key }) => [formatBytes(one[key].after), formatBytesChange(one[key])]),
    ]),
  };
}

export function linkChangeTable(links: readonly LinkChange[]): TableOf {
  return {
    columns: ["from", "to", "before", "after", "by"].map((head) => ({
      head,
      align: "right",
      ...(head === "by" ? { leaves: 0 } : {}),
    })),
    rows: links.map(({ from, to, bytes }) => [
      String(from),
      String(to),
      formatBytes(bytes.before),
      formatBytes(bytes.after),
      formatBytesChange(bytes),
    ]),
  };
}

function formatRows(
  output: Output,
  title: string,
  hint: string,
  { columns, rows }: TableOf,
  most: number,
): string[] {
  if (rows.length === 0) return [];
  const { bold, dim } = output.colors;
  const lines = [bold(title) + dim(`  ${formatCount(rows.length)} changed, ${hint}`)];
  lines.push(formatTable(output, columns, rows.slice(0, most)));
  if (rows.length > most)
    lines.push(dim(`  ... and ${formatCount(rows.length - most)} more (--json has more)`));
  return [lines.join("\n")];
}
