import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { sessionStructs } from "../../src/ffi/session.ts";

test("structures lie as the C compiler lays them out", () => {
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-structs-"));
  try {
    const lines = Object.entries(sessionStructs).flatMap(([struct, fields]) =>
      Object.keys(fields).map((field) => {
        const value = field === "size" ? `sizeof(${struct})` : `offsetof(${struct}, ${field})`;
        return `    printf("${struct} ${field} %zu\\n", ${value});`;
      }),
    );
    const source = `#include <stddef.h>\n#include <stdio.h>\n#include "tensorbus.h"\nint main(void) {\n${lines.join("\n")}\n    return 0;\n}\n`;
    writeFileSync(join(folder, "structs.c"), source);
    const header = join(import.meta.dirname, "../../native/include");
    execFileSync("cc", ["-std=c11", "-I", header, "-o", join(folder, "structs"), join(folder, "structs.c")]);
    const printed: Record<string, Record<string, number>> = {};
    for (const line of execFileSync(join(folder, "structs"), { encoding: "utf8" }).trim().split("\n")) {
      const [struct, field, value] = line.split(" ") as [string, string, string];
      printed[struct] = { ...printed[struct], [field]: Number(value) };
    }
    expect(printed).toEqual(sessionStructs);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
