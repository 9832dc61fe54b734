import { TensorBusError } from "../errors.ts";

/** The most ranks that a mesh can have, and one more than the largest rank. */
export const maxRanks = 2 ** 20;

export interface DeviceMeshOptions {
  /** The ranks of the mesh, flat and row-major; 0, 1, 2, … unless given. Distinct, in any order. */
  readonly ranks?: readonly number[];
  readonly dimNames?: readonly string[];
}

/**
 * PyTorch's `DeviceMesh`: an n-dimensional array of ranks. A rank's coordinate is its index in that array, never its
 * number. `TB_MESH` for empty dimensions, duplicates, or a wrong count of ranks.
 */
export class DeviceMesh {
  readonly shape: readonly number[];
  readonly ranks: Int32Array;
  readonly dimNames: readonly string[] | undefined;

  constructor(shape: readonly number[], options: DeviceMeshOptions = {}) {
    let size = 1;
    for (const extent of shape) {
      if (!Number.isInteger(extent) || extent < 1)
        throw meshError(`a mesh dimension cannot have the size ${extent}`, { shape });
      size *= extent;
      if (size > maxRanks) throw meshError(`a mesh can have at most ${maxRanks} ranks`, { shape });
    }
    if (shape.length === 0 || shape.length > 8)
      throw meshError("a mesh must have 1 to 8 dimensions", { shape });
    if (options.dimNames !== undefined && options.dimNames.length !== shape.length) {
      throw meshError(`${options.dimNames.length} dimNames for ${shape.length} dimensions`, {
        dimNames: options.dimNames,
      });
    }
    const ranks = options.ranks ?? Array.from({ length: size }, (_, index) => index);
    if (ranks.length !== size) {
      throw meshError(`${ranks.length} ranks for a mesh of ${shape.join(" x ")}`, {
        shape,
        ranks: ranks.length,
      });
    }
    const outside = ranks.find((rank) => !Number.isInteger(rank) || rank < 0 || rank >= maxRanks);
    if (outside !== undefined) throw meshError(`invalid rank ${outside}`, { rank: outside });
    const seen = new Uint8Array(ranks.reduce((most, rank) => Math.max(most, rank), 0) + 1);
    for (const rank of ranks) {
      if (seen[rank] !== 0) throw meshError(`rank ${rank} appears twice in the mesh`, { rank });
      seen[rank] = 1;
    }
    this.shape = Object.freeze([...shape]);
    this.ranks = Int32Array.from(ranks);
    this.dimNames = options.dimNames === undefined ? undefined : Object.freeze([...options.dimNames]);
  }

  get ndim(): number {
    return this.shape.length;
  }

  get size(): number {
    return this.ranks.length;
  }
}

function meshError(message: string, details: Record<string, unknown>): TensorBusError {
  return new TensorBusError("TB_MESH", message, { details });
}
