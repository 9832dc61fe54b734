/** Checkpoints whose every element is a number of its own, and the folders that they lie in. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach } from "vitest";
import { type DType, itemSize } from "../../../src/layout/index.ts";
import { createSafetensors, openSafetensors } from "../../../src/model/safetensors.ts";

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
}

/** A folder for each test, which goes with it. */
export function testFolder(): () => string {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tensorbus-checkpoint-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));
  return () => folder;
}

/** Bytes that tell where they are: of the tensor's number and of their place. */
export function bytesOfTensor({ shape, dtype }: TensorSpec, salt: number): Buffer {
  const count = shape.reduce((product, extent) => product * extent, itemSize(dtype));
  const bytes = Buffer.alloc(count);
  for (let at = 0; at < count; at++) bytes[at] = (at * 31 + (at >> 8) * 17 + salt * 101) & 0xff;
  return bytes;
}

export async function writeCheckpoint(
  path: string,
  tensors: readonly TensorSpec[],
  fill: (tensor: TensorSpec, index: number) => Uint8Array = bytesOfTensor,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  await using writer = await createSafetensors(
    path,
    tensors.map(({ name, shape, dtype }) => ({ name, shape: [...shape], dtype })),
    { metadata },
  );
  for (const [index, tensor] of tensors.entries()) await writer.write(tensor.name, fill(tensor, index));
  await writer.finish();
}

/** All tensors of a file, by name. */
export async function readAll(
  path: string,
): Promise<Map<string, { shape: readonly number[]; dtype: DType; bytes: Buffer }>> {
  await using file = await openSafetensors(path);
  const found = new Map<string, { shape: readonly number[]; dtype: DType; bytes: Buffer }>();
  for (const { name, shape, dtype, bytes: count } of file.tensors.values()) {
    const bytes = Buffer.alloc(count);
    await file.read(name, bytes);
    found.set(name, { shape, dtype, bytes });
  }
  return found;
}
