/* Copies of rows, past the cache if they are long. No lock is needed. */
#include "kernels/copy.h"

#include <string.h>

#include "kernels/copy_table.h"
#include "kernels/isa.h"

#if defined(__x86_64__)

#include <emmintrin.h>

static tb_rows_loop (*const rows_loops[TB_ISA_COUNT])(int64_t) = {tb_rows_loop_of_base, tb_rows_loop_of_avx2,
                                                                  tb_rows_loop_of_avx512};
static const tb_rows_loop stream_loops[TB_ISA_COUNT] = {tb_stream_rows_base, tb_stream_rows_avx2,
                                                        tb_stream_rows_avx512};

void tb_stream_end(void) {
    _mm_sfence();
}

#else

static tb_rows_loop (*const rows_loops[TB_ISA_COUNT])(int64_t) = {tb_rows_loop_of_base};
static const tb_rows_loop stream_loops[TB_ISA_COUNT] = {tb_stream_rows_base};

void tb_stream_end(void) {
}

#endif

void tb_copy_rows(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t rows,
                  int64_t run) {
    if (to_stride == run && from_stride == run) {
        run *= rows;
        rows = 1;
    }
    if (rows == 1) {
        memcpy(to, from, (size_t)run);
        return;
    }
    rows_loops[tb_isa_level()](run)(to, to_stride, from, from_stride, rows, run);
}

void tb_stream_rows(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t rows,
                    int64_t run) {
    if (run < TB_LINE_BYTES) {
        tb_copy_rows(to, to_stride, from, from_stride, rows, run);
        return;
    }
    stream_loops[tb_isa_level()](to, to_stride, from, from_stride, rows, run);
}
