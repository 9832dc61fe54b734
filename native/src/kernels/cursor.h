/*
 * A position in the elements of a strided descriptor, and the kernels that move elements between there and
 * packed bytes. Packed bytes may lie at any alignment; tensors too (a mapped file need not be aligned). A
 * cursor trusts its descriptor: tb_descriptor_check has been called on it.
 */
#ifndef TB_CURSOR_H
#define TB_CURSOR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "tensorbus.h"

#define TB_MAX_DIMS 16

typedef struct tb_cursor {
    uint8_t *base;       /* address of the first element of the tensor plus the descriptor's offset */
    uint8_t *run_start;  /* of the run that the position is in */
    int64_t run_bytes;
    int64_t in_run;      /* bytes of that run already passed */
    int64_t left;        /* bytes from the position to the end of the descriptor */
    int32_t dims;
    uint32_t cold;       /* the descriptor is so large that it is written past the cache */
    const int64_t *loops; /* (count, stride) pairs, outermost first */
    int64_t index[TB_MAX_DIMS];
} tb_cursor;

uint32_t tb_dtype_size(uint32_t dtype); /* 0: no such type */
uint32_t tb_accumulator_size(uint32_t dtype);

/*
 * Checks one descriptor of at most `words` words: its form, that counts and run are positive and run a
 * multiple of item, that nothing overflows, and that it stays within [0, bytes). Gives its bytes in all and
 * its length in words.
 */
int32_t tb_descriptor_check(const int64_t *descriptor, uint64_t words, uint64_t item, uint64_t bytes,
                            uint64_t *total_bytes, uint32_t *used_words, tb_error *err);

void tb_cursor_start(tb_cursor *cursor, void *first_element, const int64_t *descriptor);
/* That many bytes in one row. */
void tb_cursor_start_row(tb_cursor *cursor, uint8_t *at, uint64_t bytes);

/* The next runs from the position, up to max_bytes in up to max entries, as iovecs; the position stays. */
int tb_cursor_iov(const tb_cursor *cursor, struct iovec *iov, int max, uint64_t max_bytes, uint64_t *bytes);
void tb_cursor_advance(tb_cursor *cursor, uint64_t bytes);

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

/* Packed to packed, any alignment, no overlap but to == from with items that do not get wider. */
void tb_cast(void *to, uint32_t to_dtype, const void *from, uint32_t from_dtype, uint64_t count);

#endif
