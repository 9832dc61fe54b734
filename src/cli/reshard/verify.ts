import { TensorBusError } from "../../errors.ts";
import { itemSize } from "../../layout/index.ts";
import { move } from "../../memory/index.ts";
import { openSafetensors, type SafetensorsCheckpoint } from "../../model/safetensors.ts";
import { type LocalTensor, type Slab, slabs } from "./local-tensors.ts";

const slabBytes = 32 * 2 ** 20;

/**
 * Compares a target rank's file with the checkpoint that it came from, byte for byte: every element is read again from
 * the checkpoint by the rank's holding and cast, past planner, executor and transport. `TB_VERIFY` names the first
 * element that differs. Gives the bytes that were compared.
 */
export async function verifyRankFile(
  checkpoint: SafetensorsCheckpoint,
  file: string,
  tensors: readonly LocalTensor[],
  options: { readonly signal: AbortSignal; readonly onBytes: (bytes: number) => void },
): Promise<number> {
  await using written = await openSafetensors(file);
  if (written.tensors.size !== tensors.length) {
    throw new TensorBusError(
      "TB_VERIFY",
      `${file} holds ${written.tensors.size} tensors, not ${tensors.length}`,
      {
        details: { file, found: written.tensors.size, expected: tensors.length },
      },
    );
  }
  let compared = 0;
  for (const local of tensors) {
    const { name } = local.tensor;
    const found = written.tensor(name);
    if (found.dtype !== local.dtype || found.shape.join() !== local.holding.localShape.join()) {
      throw new TensorBusError("TB_VERIFY", `${name} in ${file} is ${found.dtype}[${found.shape}]`, {
        details: { file, tensor: name, dtype: local.dtype, shape: local.holding.localShape },
      });
    }
    for (const slab of slabs(local, slabBytes)) {
      const actual = Buffer.allocUnsafeSlow(slab.bytes);
      await written.read(name, actual, slab.at, options);
      const expected = await expectedSlab(checkpoint, local, slab, options);
      requireEqual(file, local, slab, actual, expected);
      compared += slab.bytes;
      options.onBytes(slab.bytes);
    }
  }
  return compared;
}

interface ExpectedOptions {
  readonly signal?: AbortSignal;
  /** Changes what was read, in the source's type, before it is cast. */
  readonly change?: (values: Buffer, local: LocalTensor) => void;
}

/** What the checkpoint says that a slab holds, in the target's type. */
export async function expectedSlab(
  checkpoint: SafetensorsCheckpoint,
  local: LocalTensor,
  slab: Slab,
  { signal, change }: ExpectedOptions,
): Promise<Buffer> {
  const { tensor, dtype } = local;
  const elements = slab.bytes / itemSize(dtype);
  const original = Buffer.allocUnsafeSlow(elements * itemSize(tensor.dtype));
  const options = signal === undefined ? {} : { signal };
  for (const { box, at } of slab.boxes) {
    await checkpoint.readBox(tensor.name, box, original, { shape: slab.shape, offsets: at }, options);
  }
  change?.(original, local);
  if (tensor.dtype === dtype) return original;
  const cast = Buffer.allocUnsafeSlow(slab.bytes);
  move({ bytes: cast, dtype }, { bytes: original, dtype: tensor.dtype });
  return cast;
}

/** `TB_VERIFY` with the first element of a slab that is not what it must be. `where` is the file or the round. */
export function requireEqual(
  where: string,
  local: LocalTensor,
  slab: Slab,
  actual: Buffer,
  expected: Buffer,
): void {
  if (actual.equals(expected)) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  const element = Math.floor((slab.at + at) / itemSize(local.dtype));
  const { name } = local.tensor;
  throw new TensorBusError(
    "TB_VERIFY",
    `${name} in ${where} is not what it must be: local element ${element} differs`,
    { details: { where, tensor: name, element } },
  );
}
