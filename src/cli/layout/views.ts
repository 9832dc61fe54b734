import { formatPlacement } from "../../layout/index.ts";
import type { Model } from "../../model/config.ts";
import { applyParts } from "../../model/parts/apply.ts";
import { joinSides } from "../../model/parts/join.ts";
import { LocalLayouts } from "../../model/parts/local.ts";
import { plannedLayout } from "../../model/parts/planned-layout.ts";
import { proveParts } from "../../model/parts/proof.ts";
import { partViews } from "../../model/parts/views.ts";
import { presetSide } from "../../model/presets/side.ts";

/** What a client of one rank registers: each planned tensor as a view of a parameter, and how it lies over its side. */
interface SideViews {
  readonly rank: number;
  readonly worldSize: number;
  /** Each layout once; its ranks count from 0, as those of the job. */
  readonly layouts: readonly {
    readonly mesh: { readonly shape: readonly number[]; readonly ranks: readonly number[] };
    readonly placements: readonly string[];
    readonly stridedShard: string | null;
  }[];
  readonly views: readonly {
    readonly tensor: string;
    readonly parameter: string;
    readonly dtype: string;
    readonly parameterShape: readonly number[];
    readonly shape: readonly number[];
    readonly offset: number;
    readonly strides: readonly number[];
    readonly globalShape: readonly number[];
    /** Its place among `layouts`. */
    readonly layout: number;
  }[];
}

/** The views of a rank of `own`, which is the `side` of the two; `other` is the preset that the tensors are cut for. */
export function sideViews(
  model: Model,
  own: LocalLayouts,
  other: string,
  side: "source" | "target",
  rank: number,
): SideViews {
  const others = new LocalLayouts(
    applyParts(presetSide(other, model), model.tensors, { modelDtype: model.dtype }),
  );
  proveParts(others);
  const [source, target] = side === "source" ? [own.side, others.side] : [others.side, own.side];
  const joined = joinSides(source, target);
  const layouts: SideViews["layouts"][number][] = [];
  const numbers = new Map<string, number>();
  const numberOf = (index: number): number => {
    const { mesh, placements, stridedShard } = plannedLayout(joined, side, index);
    const layout = {
      mesh: { shape: mesh.shape, ranks: [...mesh.ranks] },
      placements: placements.map(formatPlacement),
      stridedShard: stridedShard ?? null,
    };
    const key = JSON.stringify(layout);
    const known = numbers.get(key) ?? layouts.push(layout) - 1;
    numbers.set(key, known);
    return known;
  };
  const views = Array.from(partViews(joined, own, side, rank), ({ index, ...view }) => ({
    ...view,
    globalShape: joined.tensors[index]!.shape,
    layout: numberOf(index),
  }));
  return { rank, worldSize: own.side.ranks.length, layouts, views };
}
