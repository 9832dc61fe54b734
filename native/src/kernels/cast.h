/* Casts of packed elements. */
#ifndef TB_CAST_H
#define TB_CAST_H

#include <stdint.h>

/* Packed to packed, any alignment, no overlap but to == from with items that do not get wider. */
void tb_cast(void *to, uint32_t to_dtype, const void *from, uint32_t from_dtype, uint64_t count);

#endif
