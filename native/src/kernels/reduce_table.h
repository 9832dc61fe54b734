/*
 * What the reductions of one set of vector instructions offer: a loop for each accumulator type and operator.
 */
#ifndef TB_REDUCE_TABLE_H
#define TB_REDUCE_TABLE_H

#include <stdint.h>
#include <string.h>

#include "kernels/dtype.h"
#include "kernels/isa.h"

/* acc[i] = acc[i] op in[i]; both of the accumulator's type. */
typedef void (*tb_fold_loop)(void *restrict acc, const void *restrict in, uint64_t count);
/* acc[i] = acc[i] / divisor */
typedef void (*tb_divide_loop)(void *acc, uint64_t count, uint64_t divisor);

typedef struct tb_reduce_table {
    /* Indexed by type and operator; NULL for narrow floats and for avg, which folds as sum does. */
    tb_fold_loop fold[TB_DTYPE_COUNT][TB_PARTIAL_COUNT];
    tb_divide_loop divide_f32;
    tb_divide_loop divide_f64;
} tb_reduce_table;

extern const tb_reduce_table tb_reduce_loops_base;
#if defined(__x86_64__)
extern const tb_reduce_table tb_reduce_loops_avx2;
extern const tb_reduce_table tb_reduce_loops_avx512;
#endif

/* The reductions for the processor that runs this. */
static inline const tb_reduce_table *tb_reduce_table_now(void) {
#if defined(__x86_64__)
    const tb_reduce_table *const tables[TB_ISA_COUNT] = {&tb_reduce_loops_base, &tb_reduce_loops_avx2,
                                                         &tb_reduce_loops_avx512};
    return tables[tb_isa_level()];
#else
    return &tb_reduce_loops_base;
#endif
}

#endif
