/**
 * Templates of names, in place of regular expressions: `{L}` is a layer's prefix (`model.layers.3`), `{e}` an expert's
 * number, `{s}` what follows a module (a weight, a bias, a scale), and `{*}` at the end all that follows. Everything else
 * stands for itself, part by part between dots. Matching takes time in proportion to the name.
 */
export interface Captures {
  /** The layer's prefix and its number. */
  readonly prefix?: string | undefined;
  readonly layer?: number | undefined;
  readonly expert?: number | undefined;
  readonly suffix?: string | undefined;
  /** What follows, for `{*}`. */
  readonly rest?: string | undefined;
}

export interface Template {
  readonly text: string;
  /** The part before the last, which every name that matches has; `undefined` if it may be any. */
  readonly key: string | undefined;
  /**
   * The captures of a name; `undefined` if it does not match. `parts` is the name, cut at its dots; `layers` allows only
   * layers from the first number to before the second.
   */
  match(name: string, parts: readonly string[], layers?: readonly [number, number]): Captures | undefined;
}

const none: Captures = {};

export function parseTemplate(text: string): Template {
  const pattern = text.split(".");
  const hasPrefix = pattern[0] === "{L}";
  const hasRest = pattern.at(-1) === "{*}";
  const fixed = pattern.slice(hasPrefix ? 1 : 0, hasRest ? -1 : undefined);
  const captures = hasPrefix || hasRest || fixed.some((part) => part === "{e}" || part === "{s}");
  const beforeLast = hasRest ? undefined : pattern.at(-2);
  return {
    text,
    key: beforeLast === undefined || beforeLast.includes("{") ? undefined : beforeLast,
    match(name, parts, layers) {
      const first = hasRest ? (hasPrefix ? prefixLength(parts) : 0) : parts.length - fixed.length;
      if (hasPrefix ? first < 1 : first !== 0) return undefined;
      if (hasRest && parts.length <= first + fixed.length) return undefined;
      let expert: number | undefined;
      let suffix: string | undefined;
      for (let index = fixed.length - 1; index >= 0; index--) {
        const wanted = fixed[index]!;
        const part = parts[first + index]!;
        if (wanted === "{e}") {
          if (!isNumber(part)) return undefined;
          expert = Number(part);
        } else if (wanted === "{s}") {
          if (!isSuffix(part)) return undefined;
          suffix = part;
        } else if (wanted !== part) return undefined;
      }
      const number = hasPrefix ? parts[first - 1]! : "";
      if (hasPrefix && !isNumber(number)) return undefined;
      // Before anything is made of the name: of the rules of all stages, those of one take it.
      if (layers !== undefined && !(hasPrefix && Number(number) >= layers[0] && Number(number) < layers[1])) {
        return undefined;
      }
      if (!captures) return none;
      return {
        prefix: hasPrefix ? name.slice(0, lengthOf(parts, first)) : undefined,
        layer: hasPrefix ? Number(number) : undefined,
        expert,
        suffix,
        rest: hasRest
          ? name.slice(first + fixed.length === 0 ? 0 : lengthOf(parts, first + fixed.length) + 1)
          : undefined,
      };
    },
  };
}

/** The length of the first parts of a name, with the dots between them. */
function lengthOf(parts: readonly string[], count: number): number {
  let length = count - 1;
  for (let index = 0; index < count; index++) length += parts[index]!.length;
  return length;
}

/** How many parts the prefix of a layer has: up to the first number. */
function prefixLength(parts: readonly string[]): number {
  return parts.findIndex(isNumber) + 1;
}

/** The text of a template with what another one captured. */
export function fillTemplate(text: string, { prefix, expert, suffix, rest }: Captures): string {
  if (text === "{*}" && rest !== undefined) return rest;
  if (!text.includes("{")) return text;
  let filled = text;
  if (prefix !== undefined) filled = filled.replaceAll("{L}", prefix);
  if (suffix !== undefined) filled = filled.replaceAll("{s}", suffix);
  if (rest !== undefined) filled = filled.replaceAll("{*}", rest);
  if (expert !== undefined) filled = filled.replaceAll("{e}", String(expert));
  return filled;
}

/** Which of `{L}`, `{e}`, `{s}` and `{*}` a text has. */
export function placeholders(text: string): string[] {
  return [...new Set(text.match(/\{[^{}]*\}/g) ?? [])];
}

function isNumber(text: string): boolean {
  if (text.length === 0 || text.length > 9) return false;
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (code < 48 || code > 57) return false;
  }
  return true;
}

function isSuffix(text: string): boolean {
  return text === "weight" || text === "bias" || text.includes("scale");
}
