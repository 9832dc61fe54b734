import { nameWithinLayer } from "../../../model/parts/summary.ts";
import { formatCount } from "../../ui/format.ts";
import type { ReportParameters } from "../report.ts";
import { breakable } from "./breakable.tsx";

/** What the target's parameters are made of; those of all layers that are alike in one row. */
export function Parameters({ parameters }: { readonly parameters: ReportParameters }) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, so that keys must reach it
    <section class="scroll" tabIndex={0} aria-label="parameters, scrollable">
      <table>
        <thead>
          <tr>
            <th>parameter</th>
            <th class="numeric">count</th>
            <th>made of</th>
            <th class="numeric">tensors</th>
          </tr>
        </thead>
        <tbody>
          {parameters.groups.map(({ parameter, count, parts, tensors }) => (
            <tr key={parameter}>
              <td class="wraps">{breakable(parameter)}</td>
              <td class="numeric">{formatCount(count)}</td>
              <td class="wraps">
                {parts.length === 0 ? "a constant" : breakable(parts.map(nameWithinLayer).join(" + "))}
              </td>
              <td class="numeric">{formatCount(tensors)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
