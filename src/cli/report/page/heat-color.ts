import { interpolateOrRd, interpolateYlGnBu } from "d3-scale-chromatic";

export type ScaleKind = "linear" | "log";

/** Values by how strong their colour is, 0 to 1. */
export interface Strength {
  readonly kind: ScaleKind;
  of(value: number): number;
  /** The value of a strength: what a legend says. */
  at(strength: number): number;
}

/** Linear from 0 to the most, or logarithmic from the least to the most. */
export function strengthOf(kind: ScaleKind, least: number, most: number): Strength {
  if (kind === "linear" || least <= 0 || least === most) {
    return {
      kind: "linear",
      of: (value) => (most === 0 ? 0 : value / most),
      at: (strength) => strength * most,
    };
  }
  const range = Math.log(most / least);
  return {
    kind,
    of: (value) => Math.log(value / least) / range,
    at: (strength) => least * Math.exp(strength * range),
  };
}

/** If values differ by more than this, a linear scale hides the smaller ones. */
const wide = 64;

export function defaultKind(least: number, most: number): ScaleKind {
  return most > least * wide ? "log" : "linear";
}

/** The two ways of bytes: they have different links, and so different colours. */
export type Reach = "network" | "host";

/**
 * Yellow to green to blue across hosts, orange to red within them: lightness alone tells the values, so that both read without
 * colours. The strongest is farthest from the page's background.
 */
export function heatColor(strength: number, isDark: boolean, reach: Reach = "network"): string {
  const ramp = reach === "host" ? interpolateOrRd : interpolateYlGnBu;
  return ramp(isDark ? 0.86 - 0.8 * strength : 0.14 + 0.84 * strength);
}

/** True if text on this colour should be white. */
export function isDeep(color: string): boolean {
  const [red, green, blue] = (color.match(/\d+/g) ?? []).map(Number) as [number, number, number];
  return 0.299 * red + 0.587 * green + 0.114 * blue < 140;
}
