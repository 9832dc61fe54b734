import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { formatCount } from "../../ui/format.ts";
import type { Embedded } from "../embed.ts";
import type { Report } from "../report.ts";
import { Editor } from "./editor.tsx";
import { HeatMap } from "./heat-map.tsx";
import { Parameters } from "./parameters.tsx";
import { Patterns } from "./patterns.tsx";
import { RankBars } from "./rank-bars.tsx";
import { Budgets, Sides, Summary } from "./summary.tsx";
import { Timeline } from "./timeline.tsx";

/** The whole page: the report of the embedded plan, or of the one that was made here instead. */
export function App({ embedded }: { readonly embedded: Embedded }) {
  const [replanned, setReplanned] = useState<Report>();
  const report = replanned ?? embedded.report;
  const { summary } = report;
  return (
    <>
      <header>
        <p class="brand">
          tensorbus <span>plan</span>
        </p>
        <h1>{summary.name}</h1>
        <Sides sides={summary.sides} />
        <p class="digest">
          <span class="label">digest</span> <code id="digest">{summary.digest}</code>
          {summary.verified && <span class="badge">proved: every element once, from the right source</span>}
          {replanned !== undefined && <span class="badge changed">planned in this page</span>}
        </p>
        <nav aria-label="sections">
          {sections
            .filter(([id]) => id !== "parameters" || summary.parameters !== undefined)
            .map(([id, name]) => (
              <a key={id} href={`#${id}`}>
                {name}
              </a>
            ))}
        </nav>
      </header>
      <main>
        <Summary report={report} before={replanned && embedded.report} />
        {summary.budgets.length > 0 && (
          <Section id="budgets" title="Budgets" hint="What the spec allows, and what the plan comes to.">
            <Budgets budgets={summary.budgets} />
          </Section>
        )}
        <Section id="heat" title="Who sends to whom" hint="Click or drag to look closer, Escape to go back.">
          <HeatMap key={summary.digest} report={report} />
        </Section>
        <Section
          id="ranks"
          title="Ranks"
          hint="Bytes that each rank sends and receives, and its staging memory."
        >
          <RankBars key={summary.digest} report={report} />
        </Section>
        <Section
          id="timeline"
          title="Timeline"
          hint="When each channel is expected to run on the links of the topology."
        >
          <Timeline key={summary.digest} report={report} />
        </Section>
        <Section
          id="patterns"
          title="Patterns"
          hint="Tensors of the same shape, types and layouts travel alike."
        >
          <Patterns report={report} />
        </Section>
        {summary.parameters !== undefined && (
          <Section
            id="parameters"
            title="Parameters of the target"
            hint={`${formatCount(summary.parameters.count)}, proved whole in ${formatCount(summary.parameters.pieces)} pieces on its ranks. {} stands for the number of a layer or of an expert.`}
          >
            <Parameters parameters={summary.parameters} />
          </Section>
        )}
        <Section
          id="change"
          title="Change the spec"
          hint="The planner itself runs in this page: what it plans here has the digest that the command line gives it."
        >
          <Editor embedded={embedded} onReport={setReplanned} />
        </Section>
      </main>
    </>
  );
}

const sections = [
  ["heat", "Who sends to whom"],
  ["ranks", "Ranks"],
  ["timeline", "Timeline"],
  ["patterns", "Patterns"],
  ["parameters", "Parameters"],
  ["change", "Change the spec"],
] as const;

interface SectionProps {
  readonly id: string;
  readonly title: string;
  readonly hint: string;
  readonly children: ComponentChildren;
}

function Section({ id, title, hint, children }: SectionProps) {
  return (
    <section id={id} aria-labelledby={`${id}-title`}>
      <h2 id={`${id}-title`}>{title}</h2>
      <p class="hint">{hint}</p>
      {children}
    </section>
  );
}
