import { heatColor, type Reach, type Strength } from "./heat-color.ts";
import { styleOf, useScheme } from "./hooks.ts";

const steps = 24;
const stepWidth = 6;

interface HeatLegendProps {
  readonly strength: Strength;
  readonly title: string;
  format(value: number): string;
  /** The colours that are used; both are named if there are two. */
  readonly reaches?: readonly Reach[];
}

const names: Readonly<Record<Reach, string>> = { network: "between hosts", host: "within a host" };

/** Which colour is how much. */
export function HeatLegend({ strength, title, format, reaches = ["network"] }: HeatLegendProps) {
  useScheme();
  const isDark = styleOf("--scheme") === "dark";
  return (
    <div class="legend">
      <span>{title}</span>
      <span class="number">{format(strength.at(0))}</span>
      {reaches.map((reach) => (
        <>
          <svg width={steps * stepWidth} height={12} aria-hidden="true">
            {Array.from({ length: steps }, (_, step) => (
              <rect
                key={step}
                x={step * stepWidth}
                width={stepWidth}
                height={12}
                fill={heatColor(step / (steps - 1), isDark, reach)}
              />
            ))}
          </svg>
          {reaches.length > 1 && <span>{names[reach]}</span>}
        </>
      ))}
      <span class="number">{format(strength.at(1))}</span>
      <span class="swatch" style={{ background: "var(--empty)" }} />
      <span>none</span>
    </div>
  );
}
