import { maxRanks } from "../layout/index.ts";

const units: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};

/** Bytes of `8MiB`, `1.5 GB` or a plain number; `undefined` for anything else, and for a fraction of a byte. */
export function parseSize(value: unknown): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(
    typeof value === "number" ? String(value) : asText(value),
  );
  const unit = match === null || !Object.hasOwn(units, match[2]!) ? undefined : units[match[2]!];
  const bytes = unit === undefined ? Number.NaN : Number(match![1]) * unit;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/**
 * The ranks of `0..31`, or of a list of numbers and such ranges, in that order; `undefined` for anything else. Whether
 * they are distinct is the mesh's matter.
 */
export function parseRanks(value: unknown): number[] | undefined {
  const ranks: number[] = [];
  for (const part of Array.isArray(value) ? value : [value]) {
    const match = /^(\d+)(?:\s*\.\.\s*(\d+))?$/.exec(typeof part === "number" ? String(part) : asText(part));
    const first = Number(match?.[1] ?? Number.NaN);
    const last = Number(match?.[2] ?? first);
    if (!(first <= last && last < maxRanks) || ranks.length > maxRanks) return undefined;
    for (let rank = first; rank <= last; rank++) ranks.push(rank);
  }
  return ranks;
}

/**
 * The placement texts of a list. YAML cuts `[SS(0,2), R]` at each comma, which leaves `SS(0` and `2)`, and so the sizes of
 * `S(0;3,3,2)`: what has no closing bracket is joined with what follows.
 */
export function joinPlacements(texts: readonly unknown[]): string[] {
  const joined: string[] = [];
  for (const part of texts) {
    const text = String(part);
    const last = joined.at(-1);
    if (last?.includes("(") && !last.includes(")")) joined[joined.length - 1] = `${last},${text}`;
    else joined.push(text);
  }
  return joined;
}

function asText(value: unknown): string {
  return typeof value === "string" ? value.trim() : "";
}
