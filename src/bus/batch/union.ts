/** A side's tensors are those of all its ranks together: a rank of one pipeline stage registers that stage's alone. */
import { TensorBusError } from "../../errors.ts";
import { alignNames, compareNames, type TensorName } from "./names.ts";
import { absent, type TensorTable } from "./tensor-kinds.ts";

/** What one rank has registered, sorted. */
export interface Holder {
  readonly rank: number;
  readonly names: readonly TensorName[];
  readonly table: TensorTable;
}

export interface SideUnion {
  readonly names: readonly TensorName[];
  /** One for each holder; a tensor that it does not hold is of kind `absent`. */
  readonly tables: readonly TensorTable[];
}

/** Lists that are the same object are compared once: most ranks of a side hold the same tensors. */
export function uniteHolders(holders: readonly Holder[]): SideUnion {
  const lists = [...new Set(holders.map(({ names }) => names))];
  if (lists.length === 1) return { names: lists[0]!, tables: holders.map(({ table }) => table) };
  const names = uniteNames(lists);
  const places = new Map(lists.map((list) => [list, alignNames(names, list)]));
  const tables = holders.map(({ names: own, table: { kinds, kindOf } }) => ({
    kinds,
    kindOf: Uint32Array.from(places.get(own)!, (at) => (at < 0 ? absent : kindOf[at]!)),
  }));
  return { names, tables };
}

function uniteNames(lists: readonly (readonly TensorName[])[]): TensorName[] {
  const all = new Map<string, TensorName>();
  for (const list of lists) for (const each of list) all.set(`${each.pair} ${each.name}`, each);
  return [...all.values()].sort(compareNames);
}

/**
 * Every rank of a layout's mesh holds the tensor. `TB_BATCH_MISMATCH` names a rank that has not registered it, and one
 * that has.
 */
export function requireHolders(
  where: string,
  name: string,
  mesh: Iterable<number>,
  holds: (rank: number) => boolean,
  details: Record<string, unknown>,
): void {
  for (const rank of mesh) {
    if (holds(rank)) continue;
    throw new TensorBusError(
      "TB_BATCH_MISMATCH",
      `${where}, tensor ${name}: rank ${rank} is in the mesh of its layout, but has not registered it`,
      { details: { ...details, tensor: name, rank } },
    );
  }
}
