import { RE2JS } from "re2js";

const maxLength = 1000;
/** Steps of the machine that an expression becomes: a name costs at most as many for each of its characters. */
const maxSteps = 1000;
/** A name that is longer is no tensor's (`docs/plan-format.md`), and not looked at. */
const maxNameLength = 4096;

/**
 * A user's regular expression, which is found in names in a time that grows with their length, whatever it says: RE2's
 * syntax, without what needs to try again (look-ahead, look-behind, back-references).
 */
export class NameExpression {
  readonly source: string;
  readonly #expression: RE2JS;

  /** An `Error` says what is wrong with the expression. */
  constructor(source: string) {
    if (source.length > maxLength) {
      throw new Error(
        `a regular expression of ${source.length} characters; at most ${maxLength} are allowed`,
      );
    }
    this.source = source;
    this.#expression = compile(source);
    const steps = this.#expression.programSize();
    if (steps > maxSteps) {
      throw new Error(
        `a regular expression of ${steps} steps; at most ${maxSteps} are allowed: repeat less in it`,
      );
    }
  }

  test(name: string): boolean {
    return name.length <= maxNameLength && this.#expression.test(name);
  }

  /** What the group of this number captured, as a text; `undefined` if the name or the group does not match. */
  group(name: string, number: number): string | undefined {
    if (name.length > maxNameLength || number > this.#expression.groupCount()) return undefined;
    const matcher = this.#expression.matcher(name);
    return matcher.find() ? (matcher.group(number) ?? undefined) : undefined;
  }
}

function compile(source: string): RE2JS {
  try {
    return RE2JS.compile(source);
  } catch (cause) {
    const what = (cause as Error).message.replace(/^error parsing regexp: /, "");
    throw new Error(`Invalid regular expression: ${what} (the syntax is RE2's)`, { cause });
  }
}
