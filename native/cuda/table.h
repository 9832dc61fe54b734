/*
 * What the host hands to the kernels: a table of moves in device memory, and which of them a launch makes. C
 * and CUDA.
 *
 * A move takes elements from one strided place to another, in order. It is cut into lanes: as many elements
 * as lie in a row, and aligned, at both ends, up to 16 bytes; a thread moves one lane at a time. Lanes are
 * numbered from 0: those of a run first, then those of the innermost loop's next step.
 */
#ifndef TB_CUDA_TABLE_H
#define TB_CUDA_TABLE_H

#include <stdint.h>

enum { TB_CUDA_LOOPS = 8 };     /* loops of a move, without its run */
enum { TB_CUDA_THREADS = 256 }; /* threads of a block */
enum { TB_CUDA_UNROLL = 4 };    /* lanes that a thread has under way */
enum { TB_CUDA_TILE = TB_CUDA_THREADS * TB_CUDA_UNROLL };
/* Lanes of a move: the products of tb_divide stay within 32 bits. */
enum { TB_CUDA_MOST_LANES = 0x7fffffff };

/* A division by what is known beforehand: a multiplication and a shift, right for every number below 2^31. */
typedef struct tb_divisor {
    uint32_t magic, shift;
} tb_divisor;

/* One loop, outermost first. Strides are in bytes. */
typedef struct tb_cuda_loop {
    uint32_t count, zero;
    tb_divisor divisor;
    int64_t destination_stride, source_stride;
} tb_cuda_loop;

enum { TB_CUDA_FIRST = 1, TB_CUDA_LAST = 2, TB_CUDA_UNALIGNED = 4 };

typedef struct tb_cuda_move {
    uint64_t destination, source; /* addresses of the first element */
    uint64_t divide_by;           /* fold: of the last contribution */
    uint32_t first_tile;          /* tiles of the moves before it in the table */
    uint32_t lanes;
    uint32_t run_lanes;
    tb_divisor run_divisor;
    uint32_t first_loop;
    uint8_t loop_count;
    uint8_t lane_elements;
    uint8_t destination_type, source_type;
    uint8_t partial_op;                    /* fold */
    uint8_t flags;                         /* fold: first, last; cast and fold: elements lie at any byte */
    uint8_t destination_lane, source_lane; /* bytes of a lane */
    uint64_t zero;
} tb_cuda_move;

/* The one parameter of every kernel. */
typedef struct tb_cuda_launch {
    uint64_t moves, loops; /* addresses of the tables */
    uint32_t first_move, move_count;
    uint32_t first_tile, tile_count;
} tb_cuda_launch;

#ifndef __cplusplus
_Static_assert(sizeof(tb_cuda_loop) == 32, "loop");
_Static_assert(sizeof(tb_cuda_move) == 64, "move");
_Static_assert(sizeof(tb_cuda_launch) == 32, "launch");
#else
static_assert(sizeof(tb_cuda_loop) == 32, "loop");
static_assert(sizeof(tb_cuda_move) == 64, "move");
static_assert(sizeof(tb_cuda_launch) == 32, "launch");
#endif

/*
 * Pairs of types, to and from, that have a kernel of their own, which moves up to eight elements at once; all
 * others share one that looks at the types as it runs.
 */
#define TB_CUDA_CASTS(F)                                                                                     \
    F(float16, TB_FLOAT16, float32, TB_FLOAT32)                                                              \
    F(float16, TB_FLOAT16, bfloat16, TB_BFLOAT16)                                                            \
    F(bfloat16, TB_BFLOAT16, float32, TB_FLOAT32)                                                            \
    F(bfloat16, TB_BFLOAT16, float16, TB_FLOAT16)                                                            \
    F(bfloat16, TB_BFLOAT16, float8_e4m3fn, TB_FLOAT8_E4M3FN)                                                \
    F(float8_e4m3fn, TB_FLOAT8_E4M3FN, float32, TB_FLOAT32)                                                  \
    F(float8_e4m3fn, TB_FLOAT8_E4M3FN, bfloat16, TB_BFLOAT16)                                                \
    F(float8_e5m2, TB_FLOAT8_E5M2, float32, TB_FLOAT32)                                                      \
    F(float8_e5m2, TB_FLOAT8_E5M2, bfloat16, TB_BFLOAT16)                                                    \
    F(float32, TB_FLOAT32, float16, TB_FLOAT16)                                                              \
    F(float32, TB_FLOAT32, bfloat16, TB_BFLOAT16)                                                            \
    F(float32, TB_FLOAT32, float8_e4m3fn, TB_FLOAT8_E4M3FN)                                                  \
    F(float32, TB_FLOAT32, float64, TB_FLOAT64)                                                              \
    F(float64, TB_FLOAT64, float32, TB_FLOAT32)

#define TB_CUDA_CAST_NUMBER(to, to_type, from, from_type) TB_KERNEL_CAST_##to##_OF_##from,
enum tb_cuda_kernel {
    TB_KERNEL_COPY,
    TB_KERNEL_FOLD,
    TB_KERNEL_CAST,
    TB_CUDA_CASTS(TB_CUDA_CAST_NUMBER) TB_CUDA_KERNEL_COUNT
};
#undef TB_CUDA_CAST_NUMBER

#define TB_CUDA_CAST_NAME(to, to_type, from, from_type) "tb_cast_" #to "_of_" #from,
#define TB_CUDA_KERNEL_NAMES "tb_copy", "tb_fold", "tb_cast", TB_CUDA_CASTS(TB_CUDA_CAST_NAME)

#endif
