/*
 * What the casts of one set of vector instructions offer: a loop for each pair that converts in one step,
 * else NULL.
 */
#ifndef TB_CAST_TABLE_H
#define TB_CAST_TABLE_H

#include <stdint.h>
#include <string.h>

#include "kernels/dtype.h"
#include "kernels/isa.h"

typedef void (*tb_cast_loop)(void *restrict to, const void *restrict from, uint64_t count);
typedef const tb_cast_loop tb_cast_table[TB_DTYPE_COUNT][TB_DTYPE_COUNT];

/* Indexed by the type cast to, then the type cast from. */
extern tb_cast_table tb_cast_loops_base;
#if defined(__x86_64__)
extern tb_cast_table tb_cast_loops_avx2;
extern tb_cast_table tb_cast_loops_avx512;
#endif

/* The casts for the processor that runs this. */
static inline tb_cast_table *tb_cast_table_now(void) {
#if defined(__x86_64__)
    tb_cast_table *const tables[TB_ISA_COUNT] = {&tb_cast_loops_base, &tb_cast_loops_avx2,
                                                 &tb_cast_loops_avx512};
    return tables[tb_isa_level()];
#else
    return &tb_cast_loops_base;
#endif
}

#endif
