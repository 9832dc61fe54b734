/* The kernels, each a name around what bodies.h says that a thread does. table.h lists them. */
#include "bodies.h"

#define TB_KERNEL(name, tile_of)                                                                             \
    extern "C" __global__ void __launch_bounds__(TB_CUDA_THREADS) name(const tb_cuda_launch launch) {        \
        TB_TILES_OF_BLOCK(&launch, blockIdx.x, gridDim.x, threadIdx.x, tile_of)                              \
    }

TB_KERNEL(tb_copy, tb_copy_tile(&move, launch.loops, first))
TB_KERNEL(tb_fold, tb_fold_tile(&move, launch.loops, first))
TB_KERNEL(tb_cast, tb_cast_any_tile(&move, launch.loops, first))

#define TB_CAST_KERNEL(to, to_type, from, from_type)                                                         \
    TB_KERNEL(tb_cast_##to##_of_##from, tb_cast_tile(&move, launch.loops, first, to_type, from_type))
TB_CUDA_CASTS(TB_CAST_KERNEL)
