/*
 * Packs elements that lie side by side along another dimension than that of which they follow each other: rows become
 * columns.
 */
#ifndef TB_TRANSPOSE_H
#define TB_TRANSPOSE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Packs all elements of a descriptor that has been checked, `size` bytes each, if its innermost loop leaps and one
 * outside of it does not. False for any other descriptor, of which nothing was packed.
 */
bool tb_transpose(uint8_t *to, const uint8_t *from, const int64_t *descriptor, int64_t size);

#endif
