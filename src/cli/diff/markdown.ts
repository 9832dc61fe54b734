import { formatCount, plural } from "../ui/format.ts";
import { code, details, markdownPage, markdownTable } from "../ui/markdown.ts";
import type { TableOf } from "../ui/table.ts";
import {
  type Compared,
  describeGroup,
  describeOption,
  linkChangeTable,
  rankChangeTable,
  totalTable,
} from "./report.ts";

const mostRows = 64;

/** What changed between two plans, for a pull request or a job. */
export function markdownDiff(compared: Compared): string {
  const { before, after, diff } = compared;
  const head = `### Difference of ${code(before.spec.file)} and ${code(after.spec.file)}`;
  if (diff.equal) return `${head}\n\nNone: both plan to ${code(diff.digest.after)}.`;
  const changed = diff.tensors.reduce((sum, { count }) => sum + count, 0);
  return markdownPage([
    head,
    markdownTable(totalTable(compared)),
    ...diff.options.map((change) => `- ${code(describeOption(change))}`),
    ...(diff.reordered ? ["- The tensors stand in another order."] : []),
    ...(changed === 0
      ? []
      : [
          details(
            `Tensors: ${formatCount(changed)} changed, ${formatCount(diff.unchangedTensors)} not`,
            markdownTable(tensorTable(compared)),
          ),
        ]),
    ...changes("Ranks", rankChangeTable(diff.ranks)),
    ...changes("Links from rank to rank", linkChangeTable(diff.links)),
    ...changes("Links from host to host", linkChangeTable(diff.hosts ?? [])),
  ]);
}

/** A row for each thing that changed of each group. */
function tensorTable(compared: Compared): TableOf {
  const rows = compared.diff.tensors.flatMap((group) =>
    describeGroup(group, compared).map(([field, text], index) =>
      index === 0
        ? [group.change, formatCount(group.count), group.example, field, text]
        : ["", "", "", field, text],
    ),
  );
  return {
    columns: [
      { head: "" },
      { head: "tensors", align: "right" },
      { head: "the first" },
      { head: "what" },
      { head: "before -> after" },
    ],
    rows,
  };
}

function changes(title: string, { columns, rows }: TableOf): string[] {
  if (rows.length === 0) return [];
  const cut = rows.length > mostRows ? `, the ${mostRows} that changed most` : "";
  const table = markdownTable({ columns, rows: rows.slice(0, mostRows) });
  return [details(`${title}: ${plural(rows.length, "change")}${cut}`, table)];
}
