/**
 * The box at hand: its lengths and where it begins in the local tensors of its source group and its target
 * group.
 */
export const boxLengths: usize = memory.data(64, 8);
export const boxSource: usize = memory.data(64, 8);
export const boxTarget: usize = memory.data(64, 8);
