import type { z } from "zod";

/** An issue in our words, with the value that was found, at its own place. */
export function describeIssue(issue: z.core.$ZodIssue): { message: string; path: (string | number)[] } {
  const path = issue.path.map((part) => (typeof part === "symbol" ? String(part) : part));
  if (issue.code === "unrecognized_keys") return { message: "unknown key", path: [...path, issue.keys[0]!] };
  const expected = describeExpected(issue);
  if (expected === undefined) return { message: issue.message, path };
  return { message: `must be ${expected}, ${describeFound(issue.input)}`, path };
}

function describeExpected(issue: z.core.$ZodIssue): string | undefined {
  switch (issue.code) {
    case "invalid_type":
      return typeNames[issue.expected] ?? issue.expected;
    case "invalid_value":
      return issue.values.length === 1 ? String(issue.values[0]) : `one of ${issue.values.join(", ")}`;
    case "too_small":
      return issue.origin === "array" ? "a list with at least one entry" : `${issue.minimum} or more`;
    case "too_big":
      return `${issue.maximum} or less`;
    case "invalid_format":
      return issue.format === "regex" ? `text of the form ${issue.pattern}` : undefined;
    default:
      return undefined;
  }
}

const typeNames: Readonly<Record<string, string>> = {
  array: "a list",
  object: "a map",
  string: "text",
  int: "an integer",
  number: "a number",
  boolean: "true or false",
};

/** The value that was found, cut short, as the end of a sentence. */
export function describeFound(value: unknown): string {
  if (value === undefined) return "and is missing";
  const text = JSON.stringify(value);
  return `not ${text.length > 60 ? `${text.slice(0, 60)}…` : text}`;
}
