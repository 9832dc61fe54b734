/* Copies of rows with what every processor of the architecture has. No lock is needed. */
#include "kernels/copy_table.h"

#if defined(__x86_64__)

#include <emmintrin.h>

static inline void stream_line(uint8_t *to, const uint8_t *from) {
    for (int at = 0; at < TB_LINE_BYTES; at += 16) {
        _mm_stream_si128((__m128i *)(void *)(to + at),
                         _mm_loadu_si128((const __m128i *)(const void *)(from + at)));
    }
}

#define TB_STREAM_LINE(to, from) stream_line((to), (from))
#else
/* Other processors see by themselves that a line is written whole. */
#define TB_STREAM_LINE(to, from) memcpy((to), (from), TB_LINE_BYTES)
#endif

#define TB_ISA(name) name##_base
#define TB_VECTOR 16
#include "kernels/copy_loops.h"
