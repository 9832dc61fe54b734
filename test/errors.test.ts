import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { knownCode } from "../src/bus/batch/round-log.ts";
import { type ErrorCode, errorCodeOf, errorCodes, isErrorCode, TensorBusError } from "../src/errors.ts";

const root = join(import.meta.dirname, "..");
const codes = Object.keys(errorCodes) as ErrorCode[];

/** Code, number, exit code and first sentence of every heading of the page. */
function documented(): { code: string; number: number; exit: number; text: string }[] {
  const page = readFileSync(join(root, "docs/errors.md"), "utf8");
  return page
    .split(/^### /m)
    .slice(1)
    .map((section) => {
      const match = /^`(TB_\w+)` \((\d+), exit (\d)\)\n([^#]+)/.exec(section);
      if (match === null) throw new Error(`a heading of another form: ${section.split("\n")[0]}`);
      return {
        code: match[1]!,
        number: Number(match[2]),
        exit: Number(match[3]),
        text: match[4]!.replace(/\s+/g, " ").trim(),
      };
    });
}

/** The enumerators of `enum tb_code`, less TB_OK. */
function native(): Map<string, number> {
  const header = readFileSync(join(root, "native/include/tensorbus.h"), "utf8");
  const body = /enum tb_code \{([^}]*)\}/.exec(header)?.[1] ?? "";
  const entries = [...body.matchAll(/\bTB_(\w+) = (\d+)/g)].map(
    ([, name, number]) => [name!, Number(number)] as const,
  );
  return new Map(entries.filter(([name]) => name !== "OK"));
}

describe("the table of codes", () => {
  it("has one number a code, in order, in the hundred of its area", () => {
    const numbers = codes.map((code) => errorCodes[code].number);
    expect(new Set(numbers).size).toBe(codes.length);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    for (const code of codes) expect(errorCodeOf(errorCodes[code].number)).toBe(code);
    expect(errorCodeOf(0)).toBeUndefined();
    expect(errorCodeOf(99_999)).toBeUndefined();
  });

  it("has no codes but its own, whatever others write in place of one", () => {
    expect(codes.every(isErrorCode)).toBe(true);
    for (const text of ["constructor", "toString", "__proto__", "hasOwnProperty", "", "tb_timeout"])
      expect(isErrorCode(text), text).toBe(false);
    expect(knownCode("constructor")).toBe("TB_CANCELLED");
  });

  it("is what docs/errors.md says", () => {
    const page = documented();
    expect(page.map(({ code }) => code)).toEqual(codes);
    for (const { code, number, exit, text } of page) {
      const entry = errorCodes[code as ErrorCode];
      expect({ code, number, exit }).toEqual({ code, number: entry.number, exit: entry.exit });
      expect(text.startsWith(entry.meaning), `${code}: ${text}`).toBe(true);
      expect(text, `${code} says what to do`).toMatch(/ Do: \S/);
    }
  });

  it("holds every code of the C header, under its own number", () => {
    const enumerators = native();
    expect(enumerators.size).toBeGreaterThan(20);
    for (const [name, number] of enumerators) {
      expect(name.startsWith("E"), `TB_${name}`).toBe(true);
      expect({ name, code: errorCodeOf(number) }).toEqual({ name, code: `TB_${name.slice(1)}` });
    }
  });
});

describe("TensorBusError", () => {
  it("has code, details, cause and exit code", () => {
    const cause = new Error("why");
    const error = new TensorBusError("TB_FILE", "no such file", { details: { path: "x" }, cause });
    expect(error).toBeInstanceOf(Error);
    expect(error).toMatchObject({
      name: "TensorBusError",
      code: "TB_FILE",
      details: { path: "x" },
      cause,
      exitCode: 2,
    });
    expect(error.message).toBe("no such file");
  });

  it("has empty details and no cause unless given", () => {
    const error = new TensorBusError("TB_TIMEOUT", "late");
    expect(error.details).toEqual({});
    expect("cause" in error).toBe(false);
  });
});
