import { formatBytes, formatCount, formatDuration, formatRanks, plural } from "../../ui/format.ts";
import type { Report, ReportSchedule, ReportSide, Summary as Values } from "../report.ts";
import { stageNames } from "../report.ts";

/** The figures of a plan; beside those of the page's own plan if it was planned again. */
export function Summary({
  report,
  before,
}: {
  readonly report: Report;
  readonly before: Report | undefined;
}) {
  const { summary } = report;
  const stages = summary.stages.filter(({ chunks }) => chunks > 0);
  return (
    <>
      <dl class="tiles">
        {tiles.map(({ name, text, note, number }) => (
          <div key={name} class="tile">
            <dt>{name}</dt>
            <dd>
              <span class="figure">{text(report)}</span>
              <span class="note">{note(report)}</span>
              {before !== undefined && (
                <Change now={number(report)} was={number(before)} text={text(before)} />
              )}
            </dd>
          </div>
        ))}
      </dl>
      <p class="stages">
        {stages.map(({ stage, bytes, chunks, buckets, waves }) => (
          <span key={stage} class="key">
            <span class="swatch" style={{ background: `var(--${stageNames[stage]})` }} />
            <strong>{stageNames[stage]}</strong> {formatBytes(bytes)} in {plural(chunks, "chunk")},{" "}
            {plural(buckets, "bucket")}, {plural(waves, "wave")}
          </span>
        ))}
      </p>
    </>
  );
}

interface Tile {
  readonly name: string;
  number(report: Report): number;
  text(report: Report): string;
  note(report: Report): string;
}

const tiles: readonly Tile[] = [
  {
    name: "Predicted",
    number: ({ summary }) => summary.schedule?.makespan ?? 0,
    text: ({ summary: { schedule } }) => (schedule === undefined ? "–" : formatDuration(schedule.makespan)),
    note: ({ summary: { schedule } }) =>
      schedule === undefined ? "the spec names no topology" : describeBound(schedule),
  },
  {
    name: "Between ranks",
    number: ({ summary }) => summary.sent,
    text: ({ summary }) => formatBytes(summary.sent),
    note: ({ summary }) => (summary.copied > 0 ? `${formatBytes(summary.copied)} copied within ranks` : ""),
  },
  {
    name: "Model",
    number: ({ summary }) => summary.sourceBytes,
    text: ({ summary }) => formatBytes(summary.sourceBytes),
    note: ({ summary }) =>
      `${plural(summary.tensors, "tensor")}${summary.targetBytes === summary.sourceBytes ? "" : `, ${formatBytes(summary.targetBytes)} at the target`}`,
  },
  {
    name: "Imbalance",
    number: ({ summary }) => summary.imbalance,
    text: ({ summary }) => (summary.busiest === undefined ? "–" : summary.imbalance.toFixed(3)),
    note: ({ summary }) =>
      summary.busiest === undefined
        ? "nothing is sent"
        : `rank ${summary.busiest} sends most, over the mean of the source`,
  },
  {
    name: "Staging",
    number: mostStaged,
    text: (report) => formatBytes(mostStaged(report)),
    note: () => "at most, a rank",
  },
  {
    name: "Chunks",
    number: ({ summary }) => summary.chunks,
    text: ({ summary }) => formatCount(summary.chunks),
    note: ({ summary }) => `${plural(summary.buckets, "bucket")}, ${plural(summary.waves, "wave")}`,
  },
];

function describeBound({ ratio, lowerBound, boundBy, busiest }: ReportSchedule): string {
  if (busiest === undefined) return "nothing is sent";
  const does = busiest.direction === "out" ? "sends" : "receives";
  const where = busiest.reach === "host" ? "within its host" : "across hosts";
  const bound =
    boundBy === "chain"
      ? "the longest chain of buckets that wait for each other"
      : `all that rank ${busiest.rank} ${does} ${where}`;
  const percent = (ratio - 1) * 100;
  const least = `${formatDuration(lowerBound)}, which no schedule can beat: ${bound}`;
  return percent < 0.05 ? `as long as ${least}` : `${percent.toFixed(1)} % longer than ${least}`;
}

function mostStaged({ ranks }: Report): number {
  return ranks.staged.reduce((a, b) => Math.max(a, b), 0);
}

function Change({ now, was, text }: { readonly now: number; readonly was: number; readonly text: string }) {
  if (now === was) return <span class="change">as before</span>;
  const percent =
    was === 0 ? "" : `, ${now > was ? "+" : "−"}${(Math.abs(now / was - 1) * 100).toFixed(1)} %`;
  return (
    <span class="change">
      was {text}
      {percent}
    </span>
  );
}

/** Budgets of the spec, and what the plan comes to. */
export function Budgets({ budgets }: Pick<Values, "budgets">) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, so that keys must reach it
    <section class="scroll" tabIndex={0} aria-label="budgets, scrollable">
      <table class="budgets">
        <thead>
          <tr>
            <th>budget</th>
            <th class="numeric">limit</th>
            <th class="numeric">found</th>
            <th>state</th>
            <th>where</th>
          </tr>
        </thead>
        <tbody>
          {budgets.map(({ name, limit, found, over, where }) => (
            <tr key={name} class={over === undefined ? "kept" : "exceeded"}>
              <td>{name}</td>
              <td class="numeric">{limit}</td>
              <td class="numeric">{found}</td>
              <td class="state">
                {over === undefined ? "✓ kept" : `✗ ${over === "another plan" ? over : `over by ${over}`}`}
              </td>
              <td>{where}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

export function Sides({ sides }: Pick<Values, "sides">) {
  const [source, target] = sides as [ReportSide, ReportSide];
  return (
    <p class="sides">
      <Side {...source} /> <span class="arrow">→</span> <Side {...target} />
    </p>
  );
}

function Side({ name, mesh, dimNames, ranks }: ReportSide) {
  const dims = dimNames.length > 0 ? ` ${dimNames.join(" × ")}` : "";
  return (
    <span>
      <strong>{name}</strong> mesh {mesh.join(" × ")}
      {dims}, ranks {formatRanks(ranks)}
    </span>
  );
}
