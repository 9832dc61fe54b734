/** What `tensorbus diff` does. */
import { diffPlans, type SideForm, type TensorForm, toJSON } from "../../plan/index.ts";
import { loadPlanned } from "../plan/load.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatRanks } from "../ui/format.ts";
import type { DiffOptions } from "./command.ts";
import { markdownDiff } from "./markdown.ts";
import { type Compared, formatDiff } from "./report.ts";

/** Links that `--json` lists; there may be as many as pairs of ranks. */
const mostLinks = 1000;

/** Compares two plans, and says what changed. */
export async function runDiff(
  context: CommandContext,
  before: string,
  after: string,
  options: DiffOptions,
): Promise<void> {
  const [old, now] = [await loadPlanned(before), await loadPlanned(after)];
  const compared: Compared = { before: old, after: now, diff: diffPlans(old.plan, now.plan) };
  await context.stdout.line(describe(context, compared, options));
  if (options.exitCode && !compared.diff.equal) context.exit(1);
}

function describe(context: CommandContext, compared: Compared, options: DiffOptions): string {
  if (options.json) return JSON.stringify(jsonReport(compared));
  return options.markdown ? markdownDiff(compared) : formatDiff(context.stdout, compared);
}

function jsonReport({ before, after, diff }: Compared) {
  const { links, ...rest } = diff;
  return toJSON({
    before: before.spec.file,
    after: after.spec.file,
    ...rest,
    tensors: diff.tensors.map((group) => ({
      ...group,
      before: group.before && jsonForm(group.before),
      after: group.after && jsonForm(group.after),
    })),
    changedLinks: links.length,
    links: links.slice(0, mostLinks),
  });
}

function jsonForm(form: TensorForm) {
  const side = ({ mesh, ...rest }: SideForm) => ({
    ...rest,
    mesh: mesh.shape,
    ranks: formatRanks(mesh.ranks, Number.POSITIVE_INFINITY),
  });
  return { ...form, source: side(form.source), target: side(form.target) };
}
