/** `docs/threat-model.md` names a test for each attack: they are there, and play one. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const text = readFileSync(join(root, "docs/threat-model.md"), "utf8");
const rows = text.split("\n").filter((line) => line.startsWith("| ") && !line.startsWith("| attack"));
const tests = (row: string) =>
  [
    ...row
      .split("|")
      .at(-2)!
      .matchAll(/`([^`]+)`/g),
  ].map(([, path]) => path!);

describe("the threat model", () => {
  it.each(rows)("has a test for each attack: %s", (row) => {
    expect(tests(row)).not.toEqual([]);
    for (const path of tests(row)) expect(existsSync(join(root, path)), path).toBe(true);
  });

  it("lists the boundaries", () => {
    expect(text.match(/^## .*/gm)).toEqual([
      "## Ports of an agent",
      "## Between agents",
      "## The store",
      "## Files",
      "## Between an agent and its clients",
      "## The build",
    ]);
    expect(rows.length).toBeGreaterThan(25);
  });
});
