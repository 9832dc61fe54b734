/*
 * tb_copy_rows as a template: see cast_loops.h. Moves of a length that the compiler knows are plain loads and
 * stores; a row of any length is covered by such moves, of which the last one overlaps the one before it.
 * TB_STREAM_LINE writes a line of the cache, to whose place it is aligned, past the cache.
 */
#include <stdint.h>
#include <string.h>

#define TB_ROWS(name, move)                                                                                  \
    static void TB_ISA(name)(uint8_t *restrict to, int64_t to_stride, const uint8_t *restrict from,          \
                             int64_t from_stride, int64_t rows, int64_t run) {                               \
        (void)run;                                                                                           \
        for (; rows > 0; rows--, to += to_stride, from += from_stride) {                                     \
            move;                                                                                            \
        }                                                                                                    \
    }

/* Two moves of the larger half: a row of `size` to twice `size` bytes. */
#define TB_TWO_MOVES(size)                                                                                   \
    memcpy(to, from, size);                                                                                  \
    memcpy(to + run - (size), from + run - (size), size)

TB_ROWS(rows_of_1, memcpy(to, from, 1))
TB_ROWS(rows_of_2, memcpy(to, from, 2))
TB_ROWS(rows_of_4, memcpy(to, from, 4))
TB_ROWS(rows_of_8, memcpy(to, from, 8))
TB_ROWS(rows_of_16, memcpy(to, from, 16))
TB_ROWS(rows_of_32, memcpy(to, from, 32))
TB_ROWS(rows_of_64, memcpy(to, from, 64))
TB_ROWS(rows_of_128, memcpy(to, from, 128))
TB_ROWS(rows_from_2, TB_TWO_MOVES(2))
TB_ROWS(rows_from_4, TB_TWO_MOVES(4))
TB_ROWS(rows_from_8, TB_TWO_MOVES(8))
TB_ROWS(rows_from_16, TB_TWO_MOVES(16))
TB_ROWS(
    rows_from_vector, for (int64_t at = 0; at < run - TB_VECTOR; at += TB_VECTOR) {
        memcpy(to + at, from + at, TB_VECTOR);
    } memcpy(to + run - TB_VECTOR, from + run - TB_VECTOR, TB_VECTOR))
TB_ROWS(rows_of_any, memcpy(to, from, (size_t)run))

tb_rows_loop TB_ISA(tb_rows_loop_of)(int64_t run) {
    switch (run) {
        case 1: return TB_ISA(rows_of_1);
        case 2: return TB_ISA(rows_of_2);
        case 4: return TB_ISA(rows_of_4);
        case 8: return TB_ISA(rows_of_8);
        case 16: return TB_ISA(rows_of_16);
        case 32: return TB_ISA(rows_of_32);
        case 64: return TB_ISA(rows_of_64);
        case 128: return TB_ISA(rows_of_128);
    }
    return run < 4                    ? TB_ISA(rows_from_2)
           : run < 8                  ? TB_ISA(rows_from_4)
           : run < 16                 ? TB_ISA(rows_from_8)
           : run < 32                 ? TB_ISA(rows_from_16)
           : run <= TB_LONG_RUN_BYTES ? TB_ISA(rows_from_vector)
                                      : TB_ISA(rows_of_any);
}

/* Fewer than 64 bytes. */
static inline void TB_ISA(copy_part)(uint8_t *restrict to, const uint8_t *restrict from, int64_t run) {
    if (run >= 16) {
        for (int64_t at = 0; at < run - 16; at += 16) {
            memcpy(to + at, from + at, 16);
        }
        memcpy(to + run - 16, from + run - 16, 16);
    } else if (run >= 8) {
        TB_TWO_MOVES(8);
    } else if (run >= 4) {
        TB_TWO_MOVES(4);
    } else if (run >= 2) {
        TB_TWO_MOVES(2);
    } else if (run == 1) {
        *to = *from;
    }
}

void TB_ISA(tb_stream_rows)(uint8_t *restrict to, int64_t to_stride, const uint8_t *restrict from,
                            int64_t from_stride, int64_t rows, int64_t run) {
    for (; rows > 0; rows--, to += to_stride, from += from_stride) {
        int64_t at = (int64_t)(-(uintptr_t)to & (TB_LINE_BYTES - 1));
        at = at < run ? at : run;
        TB_ISA(copy_part)(to, from, at);
        /* The processor looks ahead by itself, but not beyond a page. */
        for (; run - at >= TB_PAGE_BYTES + TB_LINE_BYTES; at += TB_LINE_BYTES) {
            __builtin_prefetch(from + at + TB_PAGE_BYTES);
            TB_STREAM_LINE(to + at, from + at);
        }
        for (; run - at >= TB_LINE_BYTES; at += TB_LINE_BYTES) {
            TB_STREAM_LINE(to + at, from + at);
        }
        TB_ISA(copy_part)(to + at, from + at, run - at);
    }
}
