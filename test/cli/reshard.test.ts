import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { lockFolder } from "../../src/checkpoint/output.ts";
import { DeviceMesh, type DType, holdingOf, itemSize, parsePlacement } from "../../src/layout/index.ts";
import { createSafetensors, openSafetensors } from "../../src/model/safetensors.ts";
import { BundledCli } from "./kit/bundled-cli.ts";

const tensors: readonly { name: string; shape: number[]; dtype: DType }[] = [
  { name: "embed.weight", shape: [101, 64], dtype: "float32" },
  { name: "layer.0.up.weight", shape: [64, 48], dtype: "bfloat16" },
  { name: "layer.0.norm.weight", shape: [7], dtype: "float32" },
  { name: "layer.0.steps", shape: [5], dtype: "int64" },
  { name: "scalar", shape: [], dtype: "float32" },
  { name: "nothing", shape: [0, 4], dtype: "float16" },
];
const rules = ["--rule", "scalar=R->R", "--rule", "norm|steps=S(0)->R"];

let cli: BundledCli;
let folder: string;
let checkpoint: string;
let out: string;

beforeAll(async () => {
  cli = await BundledCli.build();
  folder = mkdtempSync(join(tmpdir(), "tensorbus-test-"));
  checkpoint = join(folder, "model.safetensors");
  await writeCheckpoint(checkpoint, tensors);
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});
beforeEach(() => {
  out = mkdtempSync(join(folder, "out-"));
});

/** Small integers, so that every type holds them exactly. */
async function writeCheckpoint(path: string, list: typeof tensors): Promise<void> {
  await using writer = await createSafetensors(path, list);
  for (const { name, shape, dtype } of list) {
    const count = shape.reduce((product, extent) => product * extent, 1);
    await writer.write(
      name,
      encode(
        dtype,
        Array.from({ length: count }, (_, index) => index % 128),
      ),
    );
  }
  await writer.finish();
}

function encode(dtype: DType, values: number[]): Uint8Array {
  const bytes = Buffer.alloc(values.length * itemSize(dtype));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  values.forEach((value, index) => {
    if (dtype === "float32") view.setFloat32(index * 4, value, true);
    else if (dtype === "int64") view.setBigInt64(index * 8, BigInt(value), true);
    else if (dtype === "bfloat16") view.setUint16(index * 2, float32Bits(value) >>> 16, true);
    else throw new Error(dtype);
  });
  return bytes;
}

function float32Bits(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0]!;
}

describe("tensorbus reshard", () => {
  it("moves every tensor to the layout that was asked for, cast, byte for byte", async () => {
    const args = [
      "--source",
      "4:S(0)",
      "--target",
      "2x2:S(0),S(-1)",
      "--target-dtype",
      "bfloat16",
      "--out",
      out,
    ];
    const wide = [
      "--rule",
      "scalar=R->R,R",
      "--rule",
      "norm|steps=S(0)->R,S(0)",
      "--rule",
      "nothing=S(0)->S(1),R",
    ];
    const { code, stdout, stderr } = await cli.run("reshard", checkpoint, "--processes", ...args, ...wide);
    expect(stderr).not.toContain("error");
    expect(code).toBe(0);
    expect(stdout).toContain("byte for byte");
    const mesh = new DeviceMesh([2, 2], { ranks: [4, 5, 6, 7] });
    for (const rank of mesh.ranks) {
      await using file = await openSafetensors(join(out, `rank-${rank - 4}.safetensors`));
      const { runs, localShape } = holdingOf(
        { mesh, placements: [parsePlacement("S(0)"), parsePlacement("S(-1)")] },
        [101, 64],
        rank,
      )!;
      const embed = file.tensor("embed.weight");
      expect(embed).toMatchObject({ dtype: "bfloat16", shape: localShape });
      const bytes = new Uint8Array(embed.bytes);
      await file.read("embed.weight", bytes);
      const rows = runs[0]!.flatMap((run) => Array.from({ length: run.length }, (_, i) => run.start + i));
      const columns = runs[1]!.flatMap((run) => Array.from({ length: run.length }, (_, i) => run.start + i));
      const expected = rows.flatMap((row) => columns.map((column) => (row * 64 + column) % 128));
      expect(Buffer.compare(bytes, encode("bfloat16", expected))).toBe(0);
      expect(file.tensor("layer.0.steps").dtype).toBe("int64");
    }
    // Ranks of the target are numbered behind those of the source, their files from 0.
    const again = await cli.run("reshard", out, "--target", "hf", "--out", `${out}-again`);
    expect(again.stderr).not.toContain("error");
    expect(again.code).toBe(0);
  });

  it("reads a layout whose strided shards follow the shard order", async () => {
    const { code, stderr } = await cli.run(
      ...[
        "reshard",
        checkpoint,
        "--processes",
        "--source",
        "3x2:SS(0,2),S(0)@order",
        "--target",
        "1:R",
        "--out",
        out,
      ],
      ...["--rule", "scalar=R,R->R"],
    );
    expect(stderr).not.toContain("error");
    expect(code).toBe(0);
    await using file = await openSafetensors(join(out, "rank-0.safetensors"));
    const bytes = new Uint8Array(file.tensor("embed.weight").bytes);
    await file.read("embed.weight", bytes);
    expect(
      Buffer.compare(
        bytes,
        encode(
          "float32",
          Array.from({ length: 101 * 64 }, (_, i) => i % 128),
        ),
      ),
    ).toBe(0);
  });

  it("ends with 4 and the rank's number when a rank is killed, and leaves no file", async () => {
    const large = join(folder, "large.safetensors");
    await writeCheckpoint(large, [{ name: "w", shape: [4096, 2048], dtype: "float32" }]);
    const command = cli.start([
      "reshard",
      "--processes",
      large,
      "--source",
      "2:S(0)",
      "--target",
      "2:S(1)",
      "--out",
      out,
      "--timeout",
      "60",
    ]);
    await command.printed("reading shards");
    const victim = rankProcesses(command.process.pid!)[3]!;
    process.kill(victim, "SIGKILL");
    const { code, stderr } = await command.finished;
    expect(code).toBe(4);
    expect(stderr).toMatch(/error: rank \d/);
    expect(readdirSync(out)).toEqual([]);
  });

  it("names the rank that stands still, once the deadline that was given is over", async () => {
    const large = join(folder, "large.safetensors");
    await writeCheckpoint(large, [{ name: "w", shape: [4096, 2048], dtype: "float32" }]);
    const command = cli.start([
      ...["reshard", "--processes", large, "--source", "2:S(0)", "--target", "2:S(1)"],
      ...["--out", out, "--timeout", "12"],
    ]);
    await command.printed("reading shards");
    const began = performance.now();
    const stopped = rankProcesses(command.process.pid!)[1]!;
    process.kill(stopped, "SIGSTOP");
    const { code, stderr } = await command.finished;
    const seconds = (performance.now() - began) / 1000;
    expect(`${code} ${stderr}`).toMatch(/^4 [\s\S]*error: rank 1: /);
    expect(seconds).toBeGreaterThan(5);
    expect(seconds).toBeLessThan(40);
    expect(readdirSync(out)).toEqual([]);
  }, 60_000);

  it("does not write into a folder that another run writes into, or that has its source", async () => {
    const layouts = ["--processes", "--source", "2:S(0)", "--target", "1:R", ...rules];
    {
      using _lock = lockFolder(out);
      const { code, stderr } = await cli.run("reshard", checkpoint, ...layouts, "--out", out);
      expect(`${code} ${stderr}`).toMatch(/^2 .*another process is writing a result.*TB_EXISTS/);
    }
    const own = join(out, "own");
    mkdirSync(own);
    await writeCheckpoint(join(own, "rank-0.safetensors"), tensors);
    const path = join(own, "rank-0.safetensors");
    const { code, stderr } = await cli.run("reshard", path, ...layouts, "--force", "--out", own);
    expect(`${code} ${stderr}`).toMatch(/^2 .*is a file of the source.*TB_FILE/);
    expect(readdirSync(own)).toEqual(["rank-0.safetensors"]);
  });

  it("gives no file its final name where one cannot have it", async () => {
    mkdirSync(join(out, "rank-1.safetensors", "in the way"), { recursive: true });
    const layouts = ["--source", "2:S(0)", "--target", "2:S(0)", ...rules];
    const { code, stderr } = await cli.run(
      "reshard",
      checkpoint,
      "--processes",
      ...layouts,
      "--force",
      "--out",
      out,
    );
    expect(`${code} ${stderr}`).toMatch(/^2 [\s\S]*rank 3: .*rank-1\.safetensors.*TB_FILE/);
    expect(readdirSync(out)).toEqual(["rank-1.safetensors"]);
  });

  it("names what is wrong with its input", async () => {
    const attempt = async (...argv: string[]) => {
      const { code, stderr } = await cli.run("reshard", "--processes", ...argv, "--out", out);
      return `${code} ${stderr}`;
    };
    const layouts = ["--source", "2:S(0)", "--target", "2:S(0)"];
    expect(await attempt(join(folder, "absent.safetensors"), ...layouts)).toMatch(/^2 .*absent\.safetensors/);
    expect(await attempt(checkpoint, "--source", "2;S(0)", "--target", "2:R")).toMatch(/^2 .*--source/);
    expect(await attempt(checkpoint, "--source", "2:P(sum)", "--target", "2:R", ...rules)).toMatch(
      /^2 .*P\(sum\)/,
    );
    expect(await attempt(checkpoint, ...layouts)).toMatch(/^2 .*scalar/);
    expect(await attempt(checkpoint, ...layouts, "--rule", "absent=S(0)->R", ...rules)).toMatch(
      /^2 .*absent/,
    );
    const cut = join(folder, "cut.safetensors");
    await writeCheckpoint(cut, tensors);
    truncateSync(cut, 3000);
    expect(await attempt(cut, ...layouts, ...rules)).toMatch(/^2 .*cut\.safetensors/);
    expect(readdirSync(out)).toEqual([]);
  });

  it.skipIf(process.getuid?.() !== 0).each([
    ["from files to files", []],
    ["through processes", ["--processes"]],
  ])("says that a disk is full before it moves anything, %s (needs root)", async (_, way) => {
    const small = mkdtempSync(join(folder, "small-"));
    const script = `mount -t tmpfs -o size=16k none ${small} && exec "$0" "$@"`;
    const argv = [
      ...["reshard", checkpoint, ...way, "--source", "2:S(0)", "--target", "1:R", "--out", small],
      ...rules,
    ];
    const { status, stderr } = spawnSync(
      "unshare",
      ["-m", "sh", "-c", script, process.execPath, cli.script, ...argv],
      { encoding: "utf8" },
    );
    expect(`${status} ${stderr}`).toMatch(/^4 [\s\S]*(TB_NO_SPACE)/);
  });
});

/** The processes that a process started, oldest first. */
function rankProcesses(parent: number): number[] {
  return readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").trim().split(" ").map(Number);
}
