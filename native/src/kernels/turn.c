/*
 * Elements that are turned on their way. One by one, in the order of the destination, each would fetch a line of the cache for
 * a few of its bytes; here a line is read whole, into a block that stays in the cache, and written in runs. No lock is needed.
 */
#include "kernels/turn.h"

#include <string.h>

#include "kernels/copy.h"
#include "kernels/cursor.h"

enum { LINE_BYTES = 64, BLOCK_ROWS = 64, BLOCK_BYTES = LINE_BYTES * BLOCK_ROWS };
/* Lines that lie far apart are not fetched ahead by the processor itself. */
enum { ROWS_AHEAD = 8 };
/* Fewer elements along one of the two dimensions are not worth a block. */
enum { FEWEST = 8 };

/* What is a row here becomes a column. */
typedef struct matrix {
    const uint8_t *from;
    int64_t row_stride;
    int64_t column_stride;
    int64_t rows;
    int64_t columns;
    uint8_t *to;
    int64_t to_stride; /* from one column to the next */
} matrix;

/* `size` is known where this is called, so that an element is one load and one store. */
static inline __attribute__((always_inline)) void turn_block(uint8_t *block, const matrix *part,
                                                             int64_t size) {
    for (int64_t row = 0; row < part->rows; row++) {
        const uint8_t *from = part->from + row * part->row_stride;
        __builtin_prefetch(from + ROWS_AHEAD * part->row_stride);
        uint8_t *to = block + row * size;
        for (int64_t column = 0; column < part->columns; column++) {
            memcpy(to + column * BLOCK_ROWS * size, from + column * part->column_stride, (size_t)size);
        }
    }
}

static void turn_block_of(uint8_t *block, const matrix *part, int64_t size) {
    switch (size) {
        case 1: turn_block(block, part, 1); break;
        case 2: turn_block(block, part, 2); break;
        case 4: turn_block(block, part, 4); break;
        default: turn_block(block, part, 8);
    }
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* All columns of some rows, before the next rows: their pages are few, and the lines of a page follow each other. */
static void turn_matrix(const matrix *whole, int64_t size) {
    uint8_t block[BLOCK_BYTES];
    int64_t block_columns = LINE_BYTES / whole->column_stride;
    for (int64_t row = 0; row < whole->rows; row += BLOCK_ROWS) {
        for (int64_t column = 0; column < whole->columns; column += block_columns) {
            matrix part = *whole;
            part.from += row * part.row_stride + column * part.column_stride;
            part.rows = least(BLOCK_ROWS, whole->rows - row);
            part.columns = least(block_columns, whole->columns - column);
            turn_block_of(block, &part, size);
            tb_copy_rows(part.to + column * part.to_stride + row * size, part.to_stride, block,
                         BLOCK_ROWS * size, part.columns, part.rows * size);
        }
    }
}

bool tb_turn(uint8_t *to, const uint8_t *from, const int64_t *descriptor, int64_t size) {
    int64_t inner = descriptor[1] - 1;
    const int64_t *loops = descriptor + 2;
    bool leaps = inner >= 1 && loops[2 * (inner + 1)] == size && loops[2 * inner] >= FEWEST
                 && (loops[2 * inner + 1] > LINE_BYTES || loops[2 * inner + 1] < -LINE_BYTES);
    if (!leaps) {
        return false;
    }
    int64_t across = inner - 1;
    int64_t to_stride = size * loops[2 * inner];
    while (across >= 0
           && (loops[2 * across + 1] < size || loops[2 * across + 1] > LINE_BYTES / 2
               || loops[2 * across] < FEWEST)) {
        to_stride *= loops[2 * across];
        across--;
    }
    if (across < 0) {
        return false;
    }
    matrix part = {from + descriptor[0], loops[2 * inner + 1], loops[2 * across + 1],
                   loops[2 * inner],     loops[2 * across],     to,
                   to_stride};
    int64_t index[TB_MAX_DIMS] = {0};
    for (;;) {
        turn_matrix(&part, size);
        int64_t dim = inner - 1;
        int64_t step = size * loops[2 * inner];
        for (; dim >= 0; dim--) {
            if (dim != across) {
                part.from += loops[2 * dim + 1];
                part.to += step;
                if (++index[dim] < loops[2 * dim]) {
                    break;
                }
                part.from -= loops[2 * dim] * loops[2 * dim + 1];
                part.to -= loops[2 * dim] * step;
                index[dim] = 0;
            }
            step *= loops[2 * dim];
        }
        if (dim < 0) {
            return true;
        }
    }
}
