/* Copies of equally long rows. Any alignment; rows do not overlap. */
#ifndef TB_COPY_H
#define TB_COPY_H

#include <stdint.h>

/* Copies `rows` rows of `run` bytes, whose starts lie the given bytes apart. */
void tb_copy_rows(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t rows,
                  int64_t run);

#endif
