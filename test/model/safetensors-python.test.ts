import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type DType, dtypes, isPacked, itemSize } from "../../src/layout/index.ts";
import { createSafetensors, openSafetensors } from "../../src/model/safetensors.ts";

/** Why the reference implementation cannot be asked; nothing where it can. */
function missing(): string | undefined {
  try {
    execFileSync("python3", ["-c", "import safetensors.torch, torch"], { stdio: "pipe", timeout: 120_000 });
    return undefined;
  } catch {
    return "python3 with torch and safetensors is not installed";
  }
}

const reason = missing();
if (reason !== undefined)
  console.log(`skipped: the comparison with the reference implementation (${reason})`);

function python(script: string, ...args: string[]): string {
  return execFileSync("python3", ["-c", script, ...args], { encoding: "utf8", timeout: 120_000 });
}

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "tensorbus-python-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

/** torch has no 6-bit types; of its packed one, two elements count as one. */
const known = dtypes.filter((dtype) => !dtype.startsWith("float6"));
const torchName = (dtype: DType) => (isPacked(dtype) ? `${dtype}_x2` : dtype);

describe.skipIf(reason !== undefined)("the reference implementation", () => {
  const tensors = [
    ...known.map((dtype) => ({ name: dtype, shape: isPacked(dtype) ? [2, 6] : [2, 3], dtype })),
    { name: "scalar", shape: [], dtype: "float32" as const },
    { name: "empty", shape: [0, 4], dtype: "bfloat16" as const },
  ];
  // Bytes of 0 and 1 are valid values of every type, bool included.
  const bytesOf = (index: number, length: number) =>
    Uint8Array.from({ length }, (_, at) => Number((at * (index + 2)) % 3 === 0));

  test("reads what is written here: names, types, shapes, bytes, metadata", async () => {
    const path = join(folder, "ours.safetensors");
    await using writer = await createSafetensors(path, tensors, { metadata: { made: "here" } });
    for (const [index, { name, shape, dtype }] of tensors.entries()) {
      await writer.write(
        name,
        bytesOf(
          index,
          shape.reduce((a, b) => a * b, itemSize(dtype)),
        ),
      );
    }
    await writer.finish();
    const script = `
import sys, json, torch
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as f:
    out = {"metadata": f.metadata(), "tensors": {}}
    for name in f.keys():
        t = f.get_tensor(name)
        flat = t.reshape(-1).contiguous().view(torch.uint8).tolist() if t.numel() else []
        out["tensors"][name] = [str(t.dtype).removeprefix("torch."), list(t.shape), flat]
print(json.dumps(out))`;
    const expected = tensors.map(({ name, shape, dtype }, index) => [
      name,
      [
        torchName(dtype),
        isPacked(dtype) ? shape.map((extent, dim) => (dim === 1 ? extent / 2 : extent)) : shape,
        [
          ...bytesOf(
            index,
            shape.reduce((a, b) => a * b, itemSize(dtype)),
          ),
        ],
      ],
    ]);
    const found = JSON.parse(python(script, path)) as { metadata: unknown; tensors: unknown };
    expect(found).toEqual({ metadata: { made: "here" }, tensors: Object.fromEntries(expected) });
  });

  test("writes what is read here", async () => {
    const path = join(folder, "theirs.safetensors");
    python(
      `
import sys, torch
from safetensors.torch import save_file
names = sys.argv[2].split(",")
def make(n):
    t = getattr(torch, n)
    try:
        return torch.arange(24).reshape(4, 6).to(t)
    except (NotImplementedError, RuntimeError):
        return torch.zeros(4, 6 * t.itemsize, dtype=torch.uint8).view(t)
save_file({n: make(n) for n in names}, sys.argv[1], {"made": "there"})`,
      path,
      known.map(torchName).join(","),
    );
    await using checkpoint = await openSafetensors(path);
    expect(checkpoint.metadata).toEqual({ made: "there" });
    expect([...checkpoint.tensors.values()].map(({ name, dtype }) => [name, dtype]).sort()).toEqual(
      known.map((dtype) => [torchName(dtype), dtype]).sort(),
    );
    const column = new Int16Array(4);
    await checkpoint.readBox("int16", { offsets: [0, 5], lengths: [4, 1] }, new Uint8Array(column.buffer));
    expect([...column]).toEqual([5, 11, 17, 23]);
  });

  test("refuses the damaged files that are refused here", async () => {
    const entry = (shape: number[], begin: number, end: number) => ({
      dtype: "U8",
      shape,
      data_offsets: [begin, end],
    });
    const cases: [Record<string, unknown>, number][] = [
      [{ a: entry([1], 1, 2) }, 2],
      [{ a: entry([1], 0, 1) }, 2],
      [{ a: entry([2], 0, 1) }, 1],
      [{ a: entry([2], 0, 2) }, 1],
      [{ a: entry([2], 0, 2), b: entry([2], 1, 3) }, 3],
      [{ a: entry([2], 0, 2), b: entry([0], 1, 1) }, 2],
      [{ __metadata__: { a: 1 } }, 0],
    ];
    const paths = cases.map(([header, bytes], index) => {
      const json = Buffer.from(JSON.stringify(header));
      const prefix = Buffer.alloc(8);
      prefix.writeBigUInt64LE(BigInt(json.length));
      const path = join(folder, `damaged-${index}.safetensors`);
      writeFileSync(path, Buffer.concat([prefix, json, Buffer.alloc(bytes)]));
      return path;
    });
    const script = `
import sys
from safetensors import safe_open
for path in sys.argv[1:]:
    try:
        safe_open(path, "np").__enter__()
        print("read")
    except Exception:
        print("refused")`;
    expect(
      python(script, ...paths)
        .trim()
        .split("\n"),
    ).toEqual(cases.map(() => "refused"));
    for (const path of paths) {
      await expect(openSafetensors(path)).rejects.toMatchObject({ code: "TB_SAFETENSORS" });
    }
  });
});
