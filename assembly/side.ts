/** Meshes, and the sides of patterns as they lie on them. */
// @ts-ignore: decorator
@unmanaged
export class Mesh {
  ndim: u32;
  size: u32;
  shape: usize;
  strides: usize;
  ranks: usize;
  /** Index in `ranks` of every rank of the world, -1 for a rank outside. */
  indexOf: usize;
}

/**
 * One side of a pattern. Offsets are indices in the mesh's ranks, to be added to the base of the tensor's
 * sub-mesh.
 */
// @ts-ignore: decorator
@unmanaged
export class Side {
  mesh: usize;
  shape: usize;
  /** Equal for sides whose holders stand alike: mesh, sub-mesh's shape, and what of it replicates or is partial. */
  kind: u32;
  /** Equal for sides on one mesh with sub-meshes of one shape. */
  subMesh: u32;
  /** Tensor dimension that each mesh dimension shards, -1 for none; -2 is Partial. */
  shards: usize;
  /** What one step of a coordinate adds to the group number, the replica or the contribution. */
  weights: usize;
  axes: usize;
  /** For each tensor dimension: the offset of each group. */
  groupOffsets: usize;
  replicas: u32;
  replicaOffsets: usize;
  /** Ranks that hold contributions to one value; 1: nothing is partial. */
  contributions: u32;
  contributionOffsets: usize;
}
