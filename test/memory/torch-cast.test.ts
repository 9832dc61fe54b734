import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inflateSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { arithmeticTypes, type DType } from "../../src/layout/index.ts";
import { castBytes, everyPattern, firstDifference } from "./kit/casts.ts";

interface Recorded {
  readonly input?: string;
  readonly outputs?: Readonly<Record<string, string>>;
  readonly digests?: Readonly<Record<string, string>>;
}

const root = join(import.meta.dirname, "../..");
const golden = JSON.parse(readFileSync(join(root, "test/golden/casts.json"), "utf8")) as {
  torch: string;
  casts: Record<DType, Recorded>;
};
const unpacked = (text: string): Uint8Array => new Uint8Array(inflateSync(Buffer.from(text, "base64")));
const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

describe(`casts as recorded from torch ${golden.torch}`, () => {
  it("records every pair of types", () => {
    for (const from of arithmeticTypes) {
      const { outputs, digests } = golden.casts[from];
      expect(Object.keys(outputs ?? digests ?? {})).toEqual(arithmeticTypes.filter((to) => to !== from));
    }
  });

  for (const from of arithmeticTypes) {
    it(`from ${from}`, () => {
      const recorded = golden.casts[from];
      const input = recorded.input === undefined ? everyPattern(from) : unpacked(recorded.input);
      for (const [to, output] of Object.entries(recorded.outputs ?? {}) as [DType, string][]) {
        const ours = castBytes(input, from, to);
        expect(firstDifference(input, unpacked(output), ours, from, to)).toBe(undefined);
      }
      for (const [to, expected] of Object.entries(recorded.digests ?? {}) as [DType, string][]) {
        expect(digest(castBytes(input, from, to)), `${from} to ${to}`).toBe(expected);
      }
    });
  }
});

/** The installed torch, or why there is no comparison with it. */
const torch = ((): { readonly version: string; readonly skip?: string } => {
  try {
    const script = "import torch; print(torch.__version__)";
    const version = execFileSync("python3", ["-c", script], { encoding: "utf8", stdio: "pipe" }).trim();
    const [major = 0, minor = 0] = version.split(".").map(Number);
    // Before it, float8_e4m3fn gave NaN for what was too large.
    const old = major < 2 || (major === 2 && minor < 13);
    return old ? { version, skip: `torch ${version} is older than 2.13` } : { version };
  } catch {
    return { version: "", skip: "python3 with torch is not installed" };
  }
})();
if (torch.skip !== undefined) console.log(`skipped: casts beside torch (${torch.skip})`);

describe.skipIf(torch.skip !== undefined)(`casts beside torch ${torch.version}`, () => {
  it("are the same for all patterns of 8 and 16 bits, special values and random bits", () => {
    const folder = mkdtempSync(join(tmpdir(), "tensorbus-casts-"));
    try {
      execFileSync("python3", [join(root, "test/oracle/casts.py"), "write", folder, "2"]);
      for (const from of arithmeticTypes) {
        const input = new Uint8Array(readFileSync(join(folder, `${from}.in`)));
        for (const to of arithmeticTypes.filter((name) => name !== from)) {
          const expected = new Uint8Array(readFileSync(join(folder, `${from}.${to}.out`)));
          const ours = castBytes(input, from, to);
          expect(firstDifference(input, expected, ours, from, to)).toBe(undefined);
        }
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }, 120_000);
});
