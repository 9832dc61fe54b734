/** Deeper than any file that is read here; deeper ones end in a stack that is too small for them. */
export const maxNesting = 64;

/** `JSON.parse` of a text that is nested no deeper than 64 levels; a `SyntaxError` says what is wrong. */
export function parseJson(text: string): unknown {
  let depth = 0;
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (code === quote) index = endOfString(text, index) - 1;
    else if (code === openBrace || code === openBracket) depth += 1;
    else if (code === closeBrace || code === closeBracket) depth -= 1;
    if (depth > maxNesting) throw new SyntaxError(`nested deeper than ${maxNesting} levels`);
  }
  return JSON.parse(text);
}

/**
 * The first key that stands twice in one object of a valid JSON text. `JSON.parse` keeps the last of them and says
 * nothing, so that two readers of one file could see different tensors.
 */
export function duplicateKey(json: string): string | undefined {
  const open: (Keys | undefined)[] = []; // the keys of an object; nothing for an array
  let atKey = false;
  for (let index = 0; index < json.length; index++) {
    switch (json.charCodeAt(index)) {
      case openBrace:
        open.push(new Keys());
        atKey = true;
        break;
      case openBracket:
        open.push(undefined);
        atKey = false;
        break;
      case closeBrace:
      case closeBracket:
        open.pop();
        atKey = false;
        break;
      case comma:
        atKey = open.at(-1) !== undefined;
        break;
      case quote: {
        const end = endOfString(json, index);
        if (atKey) {
          const key = textOf(json.slice(index, end));
          if (!open.at(-1)!.add(key)) return key;
          atKey = false;
        }
        index = end - 1;
        break;
      }
    }
  }
  return undefined;
}

/** The text of a string that is valid JSON; most have nothing to be unescaped. */
function textOf(literal: string): string {
  return literal.includes("\\") ? (JSON.parse(literal) as string) : literal.slice(1, -1);
}

/** The first number of a valid JSON text that is not written as a plain integer, such as `4.0`: `JSON.parse` hides that. */
export function fractionalNumber(json: string): string | undefined {
  for (let index = 0; index < json.length; index++) {
    const code = json.charCodeAt(index);
    if (code === quote) {
      index = endOfString(json, index) - 1;
    } else if (code === minus || isDigit(code)) {
      const begin = index;
      while (isDigit(json.charCodeAt(index + 1))) index++;
      const next = json.charCodeAt(index + 1);
      if (next === dot || (next | lowercase) === exponent)
        return /^[-+.\deE]+/.exec(json.slice(begin, begin + 64))![0];
    }
  }
  return undefined;
}

function isDigit(code: number): boolean {
  return code >= zero && code <= nine;
}

const minus = 0x2d;
const dot = 0x2e;
const exponent = 0x65;
const lowercase = 0x20;
const zero = 0x30;
const nine = 0x39;
const openBrace = 0x7b;
const closeBrace = 0x7d;
const openBracket = 0x5b;
const closeBracket = 0x5d;
const comma = 0x2c;
const quote = 0x22;
const backslash = 0x5c;

/** One past the closing quote of the string that opens at `start`; beyond the end if it does not close. */
function endOfString(json: string, start: number): number {
  for (let end = json.indexOf('"', start + 1); end >= 0; end = json.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (json.charCodeAt(end - 1 - backslashes) === backslash) backslashes++;
    if (backslashes % 2 === 0) return end + 1;
  }
  return json.length + 1;
}

/** The keys of an object: few in most, of which there may be a hundred thousand. */
class Keys {
  readonly #few: string[] = [];
  #many: Set<string> | undefined;

  /** False if it is there already. */
  add(key: string): boolean {
    if (this.#many === undefined) {
      if (this.#few.includes(key)) return false;
      if (this.#few.push(key) > mostFew) this.#many = new Set(this.#few);
      return true;
    }
    if (this.#many.has(key)) return false;
    this.#many.add(key);
    return true;
  }
}

const mostFew = 8;
