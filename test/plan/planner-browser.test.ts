import { join } from "node:path";
import { createContext, runInContext } from "node:vm";
import { build } from "esbuild";
import { describe, expect, it } from "vitest";
import { DeviceMesh, Partial, Plan, planTransfer, Shard } from "../../src/plan/index.ts";

const input = `({
  pairs: {
    p: {
      source: { mesh: new planner.DeviceMesh([2, 3]), placements: [planner.Partial("avg"), planner.Shard(-1)] },
      target: { mesh: new planner.DeviceMesh([4], { ranks: [9, 8, 7, 5] }), placements: [planner.Shard(0)] },
    },
  },
  tensors: [{ name: "größe", pair: "p", shape: [33, 40], dtype: "bfloat16" }],
})`;

describe("the planner in a browser", () => {
  it("is bundled with nothing of Node.js, and plans the same bytes", async () => {
    const { outputFiles } = await build({
      entryPoints: [join(import.meta.dirname, "../../src/plan/index.ts")],
      bundle: true,
      format: "iife",
      globalName: "planner",
      platform: "browser",
      write: false,
      logLevel: "silent",
    });
    const engine = { WebAssembly: (globalThis as { readonly WebAssembly?: unknown }).WebAssembly };
    // What a page has of what the planner needs, and no more: no process, no Buffer, no require.
    const page = createContext({ ...engine, TextEncoder, TextDecoder, Uint8Array, atob });
    runInContext(outputFiles[0]!.text, page);
    const run = `(async () => {
      const plan = await planner.planTransfer(${input});
      plan.verify();
      return [plan.digest, Array.from(plan.bytes), plan.program(9).bytes.length, typeof process];
    })()`;
    const [digest, bytes, length, node] = (await runInContext(run, page)) as [
      string,
      number[],
      number,
      string,
    ];

    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([2, 3]), placements: [Partial("avg"), Shard(-1)] },
          target: { mesh: new DeviceMesh([4], { ranks: [9, 8, 7, 5] }), placements: [Shard(0)] },
        },
      },
      tensors: [{ name: "größe", pair: "p", shape: [33, 40], dtype: "bfloat16" }],
    });
    expect(node).toBe("undefined");
    expect(digest).toBe(plan.digest);
    expect(length).toBe(plan.program(9).bytes.length);
    expect(Plan.load(Uint8Array.from(bytes)).digest).toBe(digest);
  });
});
