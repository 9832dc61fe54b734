/* How the kernels take bytes from a cursor: as many rows at once as lie evenly. */
#ifndef TB_CURSOR_SPAN_H
#define TB_CURSOR_SPAN_H

#include <stdint.h>

#include "kernels/cursor.h"

/* Rows of one length: one part of a run, or whole runs of the innermost loop. */
typedef struct tb_span {
    uint8_t *at;
    int64_t stride;
    int64_t rows;
    int64_t run;
} tb_span;

/* Takes the next rows, of at most that many bytes in all, and advances past them. */
tb_span tb_cursor_take(tb_cursor *cursor, int64_t bytes);

/* The rest of the run, at most that many bytes, as one row. */
static inline tb_span tb_cursor_take_of_run(tb_cursor *cursor, int64_t bytes) {
    int64_t rest = cursor->run_bytes - cursor->in_run;
    return tb_cursor_take(cursor, bytes < rest ? bytes : rest);
}

#endif
