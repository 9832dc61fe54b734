/* Casts for AVX2 and F16C. No lock is needed. */
#if defined(__x86_64__)

#include "kernels/cast_table.h"

#include <immintrin.h>

#include "kernels/isa_avx2.h"

#define TB_ISA(name) name##_avx2
#define TB_F16_BY_HARDWARE
#include "kernels/convert.h"

static void f16_of_f32_avx2(void *restrict out, const void *restrict in, uint64_t count) {
    uint8_t *restrict to = out;
    const uint8_t *restrict from = in;
    const __m128i nan = _mm_set1_epi16(0x7e00);
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 x = _mm256_loadu_ps((const float *)(const void *)(from + i * 4));
        __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        __m128i mask =
            _mm_packs_epi32(_mm256_castsi256_si128(unordered), _mm256_extracti128_si256(unordered, 1));
        __m128i half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(to + i * 2), _mm_blendv_epi8(half, nan, mask));
    }
    for (; i < count; i++) {
        float x;
        memcpy(&x, from + i * 4, sizeof x);
        uint16_t half = tb_f16_of_float(x);
        memcpy(to + i * 2, &half, sizeof half);
    }
}

static void f32_of_f16_avx2(void *restrict out, const void *restrict in, uint64_t count) {
    uint8_t *restrict to = out;
    const uint8_t *restrict from = in;
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + i * 2)));
        x = _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        _mm256_storeu_ps((float *)(void *)(to + i * 4), x);
    }
    for (; i < count; i++) {
        uint16_t half;
        memcpy(&half, from + i * 2, sizeof half);
        float x = tb_float_of_f16(half);
        memcpy(to + i * 4, &x, sizeof x);
    }
}

#include "kernels/cast_loops.h"

#include "kernels/isa_end.h"

#endif
