/* What the copies of one set of vector instructions offer: the loop for rows of a length. */
#ifndef TB_COPY_TABLE_H
#define TB_COPY_TABLE_H

#include <stdint.h>
#include <string.h>

/* From here the C library's memcpy is worth its call. */
enum { TB_LONG_RUN_BYTES = 512 };
enum { TB_LINE_BYTES = 64, TB_PAGE_BYTES = 4096 };

typedef void (*tb_rows_loop)(uint8_t *restrict to, int64_t to_stride, const uint8_t *restrict from,
                             int64_t from_stride, int64_t rows, int64_t run);

#define TB_DECLARE_COPIES(isa)                                                                               \
    tb_rows_loop tb_rows_loop_of_##isa(int64_t run);                                                         \
    void tb_stream_rows_##isa(uint8_t *restrict to, int64_t to_stride, const uint8_t *restrict from,         \
                              int64_t from_stride, int64_t rows, int64_t run)

TB_DECLARE_COPIES(base);
TB_DECLARE_COPIES(avx2);
TB_DECLARE_COPIES(avx512);

#endif
