/* Copies of rows for AVX-512. No lock is needed. */
#if defined(__x86_64__)

#include "kernels/copy_table.h"

#include <immintrin.h>

#include "kernels/isa_avx512.h"

static inline void stream_line(uint8_t *to, const uint8_t *from) {
    _mm512_stream_si512((void *)to, _mm512_loadu_si512(from));
}

#define TB_STREAM_LINE(to, from) stream_line((to), (from))
#define TB_ISA(name) name##_avx512
#define TB_VECTOR 32
#include "kernels/copy_loops.h"

#include "kernels/isa_end.h"

#endif
