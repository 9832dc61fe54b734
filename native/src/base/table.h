#ifndef TB_TABLE_H
#define TB_TABLE_H

#include <stdint.h>
#include <stdlib.h>

/* Memory for that many rows, zeroed; for no rows it is an address all the same, so that NULL means: no memory. */
static inline void *tb_table(uint64_t rows, size_t row_bytes) {
    return calloc(rows + 1, row_bytes);
}

#endif
