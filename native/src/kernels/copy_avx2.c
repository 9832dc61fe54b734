/* Copies of rows for AVX2. No lock is needed. */
#if defined(__x86_64__)

#include "kernels/copy_table.h"

#include <immintrin.h>

#include "kernels/isa_avx2.h"

static inline void stream_line(uint8_t *to, const uint8_t *from) {
    for (int at = 0; at < TB_LINE_BYTES; at += 32) {
        __m256i part = _mm256_loadu_si256((const __m256i *)(const void *)(from + at));
        _mm256_stream_si256((__m256i *)(void *)(to + at), part);
    }
}

#define TB_STREAM_LINE(to, from) stream_line((to), (from))
#define TB_ISA(name) name##_avx2
#define TB_VECTOR 32
#include "kernels/copy_loops.h"

#include "kernels/isa_end.h"

#endif
