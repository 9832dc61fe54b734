/* What the casts of one set of vector instructions offer: a loop for each pair that converts in one step, else NULL. */
#ifndef TB_CAST_TABLE_H
#define TB_CAST_TABLE_H

#include <stdint.h>
#include <string.h>

#include "dtype.h"

typedef void (*tb_cast_loop)(void *restrict to, const void *restrict from, uint64_t count);
typedef const tb_cast_loop tb_cast_table[TB_DTYPE_COUNT][TB_DTYPE_COUNT];

/* Indexed by the type cast to, then the type cast from. */
extern tb_cast_table tb_cast_loops_base;

#endif
