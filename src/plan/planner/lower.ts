import type { TensorBusError } from "../../errors.ts";
import { unitOf } from "../../layout/index.ts";
import { fail } from "../input/check.ts";
import type { NormalInput, TensorKind } from "../input/normalize.ts";
import type { LocalStrides } from "../input/types.ts";
import { Program } from "./program.ts";
import { Question, type Subject } from "./question.ts";

/** Strides of local tensors by the tensor's index in the input. */
export type StridesByTensor =
  | ReadonlyMap<number, LocalStrides>
  | Readonly<Record<number, LocalStrides | undefined>>;

const entryWords = 10;

/** Lowers the part of a plan that `rank` runs to its own memory. */
export function lowerProgram(
  subject: Subject,
  digest: Uint8Array,
  rank: number,
  strides: StridesByTensor | undefined,
): Program {
  const entries = strides === undefined ? new BigInt64Array(0) : strideEntries(subject.input, strides);
  const question = new Question(subject).withChannels();
  try {
    const at = question.ask((planner) => planner.reserve(32 + entries.byteLength));
    question.planner.write(digest, at);
    question.planner.write(new Uint8Array(entries.buffer), at + 32);
    const start = question.ask((planner) => planner.program(rank, at, at + 32, entries.length / entryWords));
    const length = question.ask((planner) => planner.programBytes());
    return new Program(new Uint8Array(question.planner.buffer, start, length).slice());
  } finally {
    question.end();
  }
}

function strideEntries(input: NormalInput, strides: StridesByTensor): BigInt64Array {
  const words: bigint[] = [];
  const list: Iterable<readonly [unknown, LocalStrides | undefined]> =
    strides instanceof Map ? strides : Object.entries(strides);
  for (const [key, local] of list) {
    if (local === undefined) continue;
    const tensor = Number(key);
    const kind = input.kinds[input.tensorKinds[tensor] ?? -1];
    if (kind === undefined)
      throw fail("TB_STRIDES", `the plan has no tensor ${String(key)}`, { tensor: key });
    (["source", "target"] as const).forEach((side, number) => {
      const given = local[side];
      if (given === undefined) return;
      checkStrides(input.names[tensor]!, side, given, kind.shape.length);
      const units = strideUnits(input.names[tensor]!, side, given, kind);
      const entry = [tensor, number, ...units].map(BigInt);
      words.push(...entry, ...new Array(entryWords - entry.length).fill(0n));
    });
  }
  return BigInt64Array.from(words);
}

/** Strides in what is planned: units of whole bytes, for packed types. */
function strideUnits(
  tensor: string,
  side: string,
  strides: readonly number[],
  { dtype, shape }: TensorKind,
): readonly number[] {
  const { elements: unit } = unitOf(dtype);
  if (unit === 1) return strides;
  return strides.map((stride, dim) => {
    const isLast = dim === shape.length - 1;
    if (isLast ? stride === 1 : stride % unit === 0) return isLast ? 1 : stride / unit;
    const why = `stride ${stride} of dimension ${dim} lets elements of ${dtype} begin inside of a byte`;
    throw fail("TB_STRIDES", `tensor ${JSON.stringify(tensor)}, ${side}: ${why}`, {
      tensor,
      side,
      strides,
      dtype,
    });
  });
}

function checkStrides(tensor: string, side: string, strides: readonly number[], ndim: number): void {
  const bad = (why: string): TensorBusError =>
    fail("TB_STRIDES", `tensor ${JSON.stringify(tensor)}, ${side}: ${why}`, { tensor, side, strides });
  if (strides.length !== ndim)
    throw bad(`a tensor of ${ndim} dimensions needs as many strides, not ${strides.length}`);
  for (const stride of strides) {
    if (!Number.isSafeInteger(stride) || stride < 0)
      throw bad(`stride ${String(stride)} is not a whole number of at least 0`);
  }
}
