/** The tensors that a client registers on this rank: put in the batch's order, checked against their memory. */
import { TensorBusError } from "../../errors.ts";
import { findAlias } from "../../exec/aliases.ts";
import { endOf, stridedOfTensor } from "../../exec/strided.ts";
import { dtypeNumber, itemSize } from "../../layout/index.ts";
import type { Memory, TensorMemory } from "../../memory/memory.ts";
import type { RegionMessage } from "../queue/commands.ts";
import type { TensorRecord } from "../queue/tensor-table.ts";
import { compareNames } from "./names.ts";
import type { TensorKind, TensorTable } from "./tensor-kinds.ts";

/** One local tensor, its name filled in and its numbers exact. */
export interface LocalTensor {
  readonly name: string;
  /** Index in the sorted pairs of the batch. */
  readonly pair: number;
  readonly dtype: TensorRecord["dtype"];
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  /** False if strides have to be told to the planner. */
  readonly packed: boolean;
  readonly region: number;
  readonly offset: bigint;
  readonly globalShape?: readonly number[] | undefined;
  /** Index in the command's layouts. */
  readonly layout?: number | undefined;
}

/**
 * In the order that both sides of a batch share: by pair, then by name, shorter names first (so that indices count up).
 * `TB_COMMAND` for a name that comes twice, `TB_SHAPE` and `TB_STRIDES` for numbers that no tensor can have.
 */
export function sortTensors(records: readonly TensorRecord[], pairs: readonly string[]): LocalTensor[] {
  const indexOf = new Map(pairs.map((pair, index) => [pair, index]));
  const tensors = records.map((record, index) => localTensor(record, index, indexOf.get(record.pair)!));
  tensors.sort(compareNames);
  for (let index = 1; index < tensors.length; index++) {
    const [before, after] = [tensors[index - 1]!, tensors[index]!];
    if (before.pair !== after.pair || before.name !== after.name) continue;
    throw new TensorBusError("TB_COMMAND", `pair ${pairs[after.pair]} has two tensors called ${after.name}`, {
      details: { pair: pairs[after.pair], tensor: after.name },
    });
  }
  return tensors;
}

function localTensor(record: TensorRecord, index: number, pair: number): LocalTensor {
  const name = record.name ?? String(index);
  const exact = (values: readonly bigint[], code: "TB_SHAPE" | "TB_STRIDES") =>
    values.map((value) => {
      if (value >= 0n && value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
      throw new TensorBusError(code, `tensor ${name}: ${value} is out of range`, {
        details: { tensor: name, value },
      });
    });
  const shape = exact(record.shape, "TB_SHAPE");
  const strides = exact(record.strides, "TB_STRIDES");
  const globalShape =
    record.globalShape === undefined ? {} : { globalShape: exact(record.globalShape, "TB_SHAPE") };
  const { dtype, region, offset, layout } = record;
  return {
    name,
    pair,
    dtype,
    shape,
    strides,
    packed: isPacked(shape, strides),
    region,
    offset,
    ...globalShape,
    ...(layout === undefined ? {} : { layout }),
  };
}

function isPacked(shape: readonly number[], strides: readonly number[]): boolean {
  let step = 1;
  for (let dim = shape.length - 1; dim >= 0; dim--) {
    if (shape[dim] !== 1 && strides[dim] !== step) return false;
    step *= shape[dim]!;
  }
  return true;
}

/** Kinds of the tensors, as they travel. */
export function tableOf(tensors: readonly LocalTensor[]): TensorTable {
  const kinds: TensorKind[] = [];
  const byText = new Map<string, number>();
  const kindOf = new Uint32Array(tensors.length);
  tensors.forEach(({ pair, dtype, shape, globalShape, layout }, index) => {
    const text = `${pair} ${dtypeNumber(dtype)} ${shape.join()} ${globalShape?.join() ?? "-"} ${layout ?? "-"}`;
    let kind = byText.get(text);
    if (kind === undefined) {
      const own = {
        ...(globalShape === undefined ? {} : { globalShape }),
        ...(layout === undefined ? {} : { layout }),
      };
      kind = kinds.push({ pair, dtype, shape, ...own }) - 1;
      byText.set(text, kind);
    }
    kindOf[index] = kind;
  });
  return { kinds, kindOf };
}

/** The place of each tensor. `TB_REGION`, `TB_STRIDES` if one does not lie within the region that it names. */
export function placeTensors(
  tensors: readonly LocalTensor[],
  regions: readonly RegionMessage[],
  memories: readonly Memory[],
): TensorMemory[] {
  return tensors.map(({ name, dtype, shape, strides, region, offset }) => {
    const memory = memories[region]!;
    const size = itemSize(dtype);
    if (offset % BigInt(size) !== 0n) {
      throw new TensorBusError(
        "TB_STRIDES",
        `tensor ${name} begins at byte ${offset}, inside of an element of ${size} bytes`,
        {
          details: { tensor: name, offset, dtype },
        },
      );
    }
    const bytes = stridedOfTensor(0n, shape, size, strides);
    const end = offset + (bytes === undefined ? 0n : BigInt(endOf(bytes)));
    const declared = regions[region]!.bytes;
    if (end > declared || end > memory.bytes) {
      throw new TensorBusError("TB_REGION", `tensor ${name} ends at byte ${end} of a region of ${declared}`, {
        details: { tensor: name, offset, end, bytes: declared },
      });
    }
    return { memory, offset };
  });
}

/** Why these tensors cannot be received into, whatever is received: two of them share bytes, or one with itself. */
export function refuseTargets(
  tensors: readonly LocalTensor[],
  places: readonly TensorMemory[],
): { readonly code: string; readonly message: string } | undefined {
  const views = tensors.flatMap(({ dtype, shape, strides }, tensor) => {
    const { memory, offset } = places[tensor]!;
    const bytes = stridedOfTensor(memory.address + offset, shape, itemSize(dtype), strides);
    return bytes === undefined ? [] : [{ tensor, kind: "target" as const, bytes, writes: () => [bytes] }];
  });
  const alias = findAlias(views);
  if (alias === undefined) return undefined;
  const [one, other] = [tensors[alias.target.tensor]!.name, tensors[alias.other.tensor]!.name];
  return { code: "TB_ALIAS", message: `tensor ${one} overlaps ${one === other ? "itself" : other}` };
}
