/** The layouts of one side's tensors, each once, and what several ranks' layouts of one tensor are together. */
import { type Layout, parsePlacement } from "../../layout/index.ts";
import { layoutDigest, layoutOf } from "../pair/records.ts";
import type { LayoutMessage } from "../queue/commands.ts";

export class SideLayouts {
  readonly #messages: LayoutMessage[] = [];
  readonly #layouts: Layout[] = [];
  readonly #ids = new Map<string, number>();
  /** By the object that was asked for, so that a digest is made once for each. */
  readonly #known = new WeakMap<LayoutMessage, number>();
  readonly #merged = new Map<string, number | undefined>();

  /** All of them, each at its number. */
  get messages(): readonly LayoutMessage[] {
    return this.#messages;
  }

  at(id: number): Layout {
    return this.#layouts[id]!;
  }

  /** The number of a layout: equal layouts have one number. */
  add(message: LayoutMessage): number {
    const known = this.#known.get(message);
    if (known !== undefined) return known;
    const digest = layoutDigest(message);
    let id = this.#ids.get(digest);
    if (id === undefined) {
      this.#layouts.push(layoutOf(message));
      id = this.#messages.push(message) - 1;
      this.#ids.set(digest, id);
    }
    this.#known.set(message, id);
    return id;
  }

  /**
   * One layout for a tensor that several groups of ranks hold, each by a layout of its own: equal but for their ranks, and
   * without a rank in common, they are replicas, and the merged layout has a first mesh dimension that replicates.
   * `undefined` if they are anything else. The numbers come sorted.
   */
  merge(ids: readonly number[]): number | undefined {
    const key = ids.join();
    if (!this.#merged.has(key)) {
      const merged = mergeReplicas(ids.map((id) => this.#messages[id]!));
      this.#merged.set(key, merged && this.add(merged));
    }
    return this.#merged.get(key);
  }
}

function mergeReplicas(layouts: readonly LayoutMessage[]): LayoutMessage | undefined {
  const [first] = layouts as [LayoutMessage];
  const claims = ({ mesh, placements, stridedShard }: LayoutMessage) =>
    JSON.stringify([mesh.shape, placements.map((text) => parsePlacement(text)), stridedShard ?? null]);
  if (layouts.some((layout) => claims(layout) !== claims(first))) return undefined;
  const ranks = layouts.flatMap(({ mesh }) => mesh.ranks);
  if (new Set(ranks).size !== ranks.length || first.mesh.shape.length === 8) return undefined;
  return {
    ...first,
    mesh: { shape: [layouts.length, ...first.mesh.shape], ranks },
    placements: ["R", ...first.placements],
  };
}
