/*
 * Elements between strided places and packed bytes. Packed bytes may lie at any alignment; tensors too (a mapped file
 * need not be aligned).
 */
#ifndef TB_PACK_H
#define TB_PACK_H

#include "kernels/cursor.h"

/*
 * Move the next count elements and advance. A cursor stands at an element's first byte. The two sides do not
 * overlap.
 */
void tb_cursor_pack(tb_cursor *from, uint32_t from_dtype, void *wire, uint32_t wire_dtype, uint64_t count);
void tb_cursor_unpack(tb_cursor *to, uint32_t to_dtype, const void *wire, uint32_t wire_dtype,
                      uint64_t count);
void tb_cursor_move(tb_cursor *to, uint32_t to_dtype, tb_cursor *from, uint32_t from_dtype, uint64_t count);
/* As tb_reduce, the contribution read through a cursor. */
void tb_cursor_reduce(void *acc, tb_cursor *from, uint64_t count, uint32_t dtype, uint32_t partial_op,
                      uint32_t first);

#endif
