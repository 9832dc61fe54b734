/** Layouts as callers name them, and as messages carry them. */
import { TensorBusError } from "../../errors.ts";
import {
  type DeviceMesh,
  formatPlacement,
  type Placement,
  parsePlacement,
  type StridedShardReading,
} from "../../layout/index.ts";
import type { LayoutMessage } from "../queue/commands.ts";

/** How tensors lie over ranks: DTensor's mesh and placements. */
export interface ClientLayout {
  /** Ranks of the world of agents; this agent's rank is among them. */
  readonly deviceMesh: DeviceMesh;
  /** One for each mesh dimension, or their text forms. */
  readonly placements: readonly (Placement | string)[];
  /** How strided shards read; needed only if the two readings differ. */
  readonly stridedShard?: StridedShardReading | undefined;
}

/** `TB_MESH` for a mesh without this rank, `TB_PLACEMENT` for placements that do not fit the mesh. */
export function layoutMessage(
  { deviceMesh, placements, stridedShard }: ClientLayout,
  rank: number,
): LayoutMessage {
  const ranks = [...deviceMesh.ranks];
  if (!ranks.includes(rank)) {
    throw new TensorBusError("TB_MESH", `rank ${rank} is not in its own mesh`, { details: { rank, ranks } });
  }
  if (placements.length !== deviceMesh.ndim) {
    const message = `a mesh of ${deviceMesh.ndim} dimensions needs as many placements, not ${placements.length}`;
    throw new TensorBusError("TB_PLACEMENT", message, { details: { placements, mesh: deviceMesh.shape } });
  }
  const { shape, dimNames } = deviceMesh;
  return {
    mesh: { shape: [...shape], ranks, ...(dimNames === undefined ? {} : { dimNames: [...dimNames] }) },
    placements: placements.map((each) =>
      formatPlacement(typeof each === "string" ? parsePlacement(each) : each),
    ),
    ...(stridedShard === undefined ? {} : { stridedShard }),
  };
}

/** The layouts that tensors of one command name, each once. */
export class LayoutList {
  readonly messages: LayoutMessage[] = [];
  readonly #rank: number;
  readonly #byObject = new Map<ClientLayout, number>();
  readonly #byText = new Map<string, number>();

  constructor(rank: number) {
    this.#rank = rank;
  }

  /** Its index. Tensors that name the same object are the fast way: its text is made once. */
  add(layout: ClientLayout): number {
    let index = this.#byObject.get(layout);
    if (index !== undefined) return index;
    const message = layoutMessage(layout, this.#rank);
    const text = JSON.stringify(message);
    index = this.#byText.get(text) ?? this.messages.push(message) - 1;
    this.#byText.set(text, index);
    this.#byObject.set(layout, index);
    return index;
  }
}
