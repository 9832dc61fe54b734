/* Casts for AVX-512. No lock is needed. */
#if defined(__x86_64__)

#include "kernels/cast_table.h"

#include <immintrin.h>

#include "kernels/isa_avx512.h"

#define TB_ISA(name) name##_avx512
#define TB_F16_BY_HARDWARE
#include "kernels/convert.h"

static void f16_of_f32_avx512(void *restrict out, const void *restrict in, uint64_t count) {
    uint8_t *restrict to = out;
    const uint8_t *restrict from = in;
    const __m256i nan = _mm256_set1_epi16(0x7e00);
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512 x = _mm512_loadu_ps(from + i * 4);
        __mmask16 unordered = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        __m256i half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256((__m256i *)(void *)(to + i * 2), _mm256_mask_blend_epi16(unordered, half, nan));
    }
    for (; i < count; i++) {
        float x;
        memcpy(&x, from + i * 4, sizeof x);
        uint16_t half = tb_f16_of_float(x);
        memcpy(to + i * 2, &half, sizeof half);
    }
}

static void f32_of_f16_avx512(void *restrict out, const void *restrict in, uint64_t count) {
    uint8_t *restrict to = out;
    const uint8_t *restrict from = in;
    const __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(from + i * 2)));
        x = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x, nan);
        _mm512_storeu_ps(to + i * 4, x);
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
