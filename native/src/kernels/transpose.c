/*
 * Elements that are turned on their way. One by one, in the order of the destination, each would fetch a line of the
 * cache for a few of its bytes; here a line is read whole, into a block that stays in the cache, and written in runs.
 * No lock is needed.
 */
#include "kernels/transpose.h"

#include <string.h>

#include "kernels/copy.h"
#include "kernels/cursor.h"

enum { LINE_BYTES = 64, VECTOR_BYTES = 16, BLOCK_ROWS = 128, BLOCK_BYTES = LINE_BYTES * BLOCK_ROWS };
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

/* Some rows of one line each into a block, in which a column has BLOCK_ROWS elements, from a row and a column on. */
static inline __attribute__((always_inline)) void turn_elements(uint8_t *block, const matrix *part, int64_t size,
                                                                int64_t first_row, int64_t first_column) {
    const matrix of = *part; /* the compiler sees that what is written is none of it */
    for (int64_t row = first_row; row < of.rows; row++) {
        const uint8_t *from = of.from + row * of.row_stride;
        for (int64_t column = first_column; column < of.columns; column++) {
            memcpy(block + (column * BLOCK_ROWS + row) * size, from + column * of.column_stride, (size_t)size);
        }
    }
}

/* The size is known to the compiler: an element is one load and one store. */
static void turn_rest(uint8_t *block, const matrix *part, int64_t size, int64_t first_row, int64_t first_column) {
    switch (size) {
        case 1: turn_elements(block, part, 1, first_row, first_column); break;
        case 2: turn_elements(block, part, 2, first_row, first_column); break;
        case 4: turn_elements(block, part, 4, first_row, first_column); break;
        default: turn_elements(block, part, 8, first_row, first_column);
    }
}

/*
 * As many vectors as one has elements, turned in registers: the halves of two that are half of all apart are
 * interleaved, as often as their number can be halved.
 */
#define TB_TURN_VECTORS(name, type, lanes, low, high)                                                                  \
    typedef type name##_vector __attribute__((vector_size(VECTOR_BYTES)));                                             \
    static inline void name(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride) {                \
        name##_vector now[lanes];                                                                                      \
        name##_vector next[lanes];                                                                                     \
        _Pragma("GCC unroll 16") for (int lane = 0; lane < (lanes); lane++) {                                          \
            memcpy(&now[lane], from + lane * from_stride, VECTOR_BYTES);                                               \
        }                                                                                                              \
        _Pragma("GCC unroll 4") for (int stage = 1; stage < (lanes); stage *= 2) {                                     \
            _Pragma("GCC unroll 8") for (int lane = 0; lane < (lanes) / 2; lane++) {                                   \
                name##_vector a = now[lane];                                                                           \
                name##_vector b = now[lane + (lanes) / 2];                                                             \
                next[2 * lane] = low;                                                                                  \
                next[2 * lane + 1] = high;                                                                             \
            }                                                                                                          \
            _Pragma("GCC unroll 16") for (int lane = 0; lane < (lanes); lane++) {                                      \
                now[lane] = next[lane];                                                                                \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 16") for (int lane = 0; lane < (lanes); lane++) {                                          \
            memcpy(to + lane * to_stride, &now[lane], VECTOR_BYTES);                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_block(uint8_t *block, const matrix *part) {                                                     \
        const matrix of = *part;                                                                                       \
        int64_t size = sizeof(type);                                                                                   \
        for (int64_t row = 0; row + (lanes) <= of.rows; row += (lanes)) {                                              \
            for (int64_t column = 0; column + (lanes) <= of.columns; column += (lanes)) {                              \
                name(block + (column * BLOCK_ROWS + row) * size, BLOCK_ROWS * size,                                    \
                     of.from + row * of.row_stride + column * size, of.row_stride);                                    \
            }                                                                                                          \
        }                                                                                                              \
    }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TB_HAS_SHUFFLES
#endif
#endif

#if defined(TB_HAS_SHUFFLES)
TB_TURN_VECTORS(turn_of_1, uint8_t, 16,
                __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31))
TB_TURN_VECTORS(turn_of_2, uint16_t, 8, __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11),
                __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15))
TB_TURN_VECTORS(turn_of_4, uint32_t, 4, __builtin_shufflevector(a, b, 0, 4, 1, 5),
                __builtin_shufflevector(a, b, 2, 6, 3, 7))
TB_TURN_VECTORS(turn_of_8, uint64_t, 2, __builtin_shufflevector(a, b, 0, 2), __builtin_shufflevector(a, b, 1, 3))
#endif

/* One line of each row into a block: by vectors as far as they reach, the rest one by one. */
static void turn_block(uint8_t *block, const matrix *part, int64_t size) {
    int64_t rows = 0;
    int64_t columns = 0;
#if defined(TB_HAS_SHUFFLES)
    if (part->column_stride == size) {
        int64_t lanes = VECTOR_BYTES / size;
        rows = part->rows / lanes * lanes;
        columns = part->columns / lanes * lanes;
        switch (size) {
            case 1: turn_of_1_block(block, part); break;
            case 2: turn_of_2_block(block, part); break;
            case 4: turn_of_4_block(block, part); break;
            default: turn_of_8_block(block, part);
        }
    }
#endif
    matrix above = *part;
    above.rows = rows;
    turn_rest(block, &above, size, 0, columns);
    turn_rest(block, part, size, rows, 0);
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
            turn_block(block, &part, size);
            tb_copy_rows(part.to + column * part.to_stride + row * size, part.to_stride, block, BLOCK_ROWS * size,
                         part.columns, part.rows * size);
        }
    }
}

bool tb_transpose(uint8_t *to, const uint8_t *from, const int64_t *descriptor, int64_t size) {
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
           && (loops[2 * across + 1] < size || loops[2 * across + 1] > LINE_BYTES / 2 || loops[2 * across] < FEWEST)) {
        to_stride *= loops[2 * across];
        across--;
    }
    if (across < 0) {
        return false;
    }
    matrix part = {from + descriptor[0],
                   loops[2 * inner + 1],
                   loops[2 * across + 1],
                   loops[2 * inner],
                   loops[2 * across],
                   to,
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
