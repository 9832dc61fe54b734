import { randomInt } from "node:crypto";
import pc from "picocolors";

const names = ["bold", "dim", "red", "green", "yellow", "cyan"] as const;
export type Colors = Readonly<Record<(typeof names)[number], (text: string) => string>>;

/** In our own escapes, so that those of somebody's text are told from them: four digits each, as in any colour. */
const mark = `${randomInt(1000, 10_000)};${randomInt(1000, 10_000)}`;
const codes = pc.createColors(true);
const ours = new RegExp(`\\x1b\\[(\\d{1,2});${mark}m`, "g");

/** Colours, or none. Their texts go through `resolveColors` before they are written. */
export function createColors(enabled: boolean): Colors {
  const entries = names.map((name) => {
    const [open = "", close = ""] = codes[name]("|")
      .split("|")
      .map((code) => code.replace("m", `;${mark}m`));
    return [name, enabled ? (text: string) => open + text + close : (text: string) => text] as const;
  });
  return Object.fromEntries(entries) as unknown as Colors;
}

/** Puts the colours in, and has `show` make all other text visible. */
export function resolveColors(text: string, show: (text: string) => string): string {
  let result = "";
  let from = 0;
  for (const match of text.matchAll(ours)) {
    result += `${show(text.slice(from, match.index))}\x1b[${match[1]}m`;
    from = match.index + match[0].length;
  }
  return result + show(text.slice(from));
}
