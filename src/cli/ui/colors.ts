import pc from "picocolors";

const names = ["bold", "dim", "red", "green", "yellow", "cyan"] as const;
export type Colors = Readonly<Record<(typeof names)[number], (text: string) => string>>;

/**
 * In our own escapes, so that those of somebody's text are told from them: four digits each, as in any colour. Chosen when
 * there is a colour: most commands write to no terminal, and Node.js takes a while to load what chooses.
 */
let mark: string | undefined;

function ownMark(): string {
  mark ??= Array.from({ length: 2 }, fourDigits).join(";");
  return mark;
}

/** 1000 to 9999, each as likely as the others. */
function fourDigits(): number {
  for (;;) {
    const [value] = crypto.getRandomValues(new Uint16Array(1)) as unknown as [number];
    if (value < 63_000) return 1000 + (value % 9000);
  }
}

/** Colours, or none. Their texts go through `resolveColors` before they are written. */
export function createColors(enabled: boolean): Colors {
  const codes = pc.createColors(enabled);
  const entries = names.map((name) => {
    if (!enabled) return [name, (text: string) => text] as const;
    const [open = "", close = ""] = codes[name]("|")
      .split("|")
      .map((code) => code.replace("m", `;${ownMark()}m`));
    return [name, (text: string) => open + text + close] as const;
  });
  return Object.fromEntries(entries) as unknown as Colors;
}

/** Puts the colours in, and has `show` make all other text visible. */
export function resolveColors(text: string, show: (text: string) => string): string {
  if (mark === undefined) return show(text);
  const ours = new RegExp(`\\x1b\\[(\\d{1,2});${mark}m`, "g");
  let result = "";
  let from = 0;
  for (const match of text.matchAll(ours)) {
    result += `${show(text.slice(from, match.index))}\x1b[${match[1]}m`;
    from = match.index + match[0].length;
  }
  return result + show(text.slice(from));
}
