/*
 * A position in the elements of a strided descriptor. A cursor trusts its descriptor: tb_descriptor_check has been
 * called on it.
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
    uint8_t *run_start;  /* the beginning of the run that the position is in */
    int64_t run_bytes;
    int64_t in_run;      /* bytes of that run already passed */
    int64_t left;        /* bytes from the position to the end of the descriptor */
    int32_t dims;
    uint32_t cold;       /* the descriptor is so large that it is written past the cache */
    const int64_t *loops; /* (count, stride) pairs, outermost first */
    int64_t index[TB_MAX_DIMS];
} tb_cursor;

void tb_cursor_start(tb_cursor *cursor, void *first_element, const int64_t *descriptor);
/* That many bytes in one row. */
void tb_cursor_start_row(tb_cursor *cursor, uint8_t *at, uint64_t bytes);

/* The next runs from the position, up to max_bytes in up to max entries, as iovecs; the position stays. */
int tb_cursor_iov(const tb_cursor *cursor, struct iovec *iov, int max, uint64_t max_bytes, uint64_t *bytes);
void tb_cursor_advance(tb_cursor *cursor, uint64_t bytes);

#endif
