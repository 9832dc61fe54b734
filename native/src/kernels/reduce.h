#ifndef TB_REDUCE_H
#define TB_REDUCE_H

#include <stdint.h>

/* tb_reduce of arguments that were checked. */
void tb_fold(void *acc, const void *in, uint64_t count, uint32_t dtype, uint32_t partial_op, uint32_t first);

#endif
