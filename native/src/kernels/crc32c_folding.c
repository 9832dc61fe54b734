/*
 * CRC-32C by carry-less multiplication: 128 bits are a polynomial, and that of 128 bits which lie D bits further is
 * added to it times x^D, modulo the CRC's own. 16 such lanes are folded side by side, then into one. No lock is needed.
 */
#include "kernels/crc32c.h"

#include <pthread.h>
#include <string.h>

#if defined(__x86_64__)

#include <immintrin.h>

#define WITH_FOLDING \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,vpclmulqdq,pclmul,sse4.2")))

enum { LINE = 64, BLOCK = 4 * LINE };

/* For each lane two factors: of its first and of its last 64 bits. */
typedef uint64_t factors[8];
static factors over_block;
static factors over_line;
static factors into_last_lane;
static pthread_once_t factors_made = PTHREAD_ONCE_INIT;

/*
 * A register holds the coefficients in reverse. A product of two 64-bit registers then comes out times x,
 * hence the powers less one; its first half stands 64 bits before its second.
 */
static void make_lane(uint64_t *lane, uint64_t bits) {
    lane[0] = (uint64_t)tb_crc_power(bits + 63) << 32;
    lane[1] = (uint64_t)tb_crc_power(bits - 1) << 32;
}

static void make_factors(void) {
    for (int lane = 0; lane < 4; lane++) {
        make_lane(over_block + 2 * lane, BLOCK * 8);
        make_lane(over_line + 2 * lane, LINE * 8);
    }
    /* The last lane's stay zero: it is where the others go. */
    for (int lane = 0; lane < 3; lane++) {
        make_lane(into_last_lane + 2 * lane, (uint64_t)(3 - lane) * 128);
    }
}

WITH_FOLDING static inline __m512i fold(__m512i lanes, __m512i by, __m512i next) {
    __m512i first = _mm512_clmulepi64_epi128(lanes, by, 0x00);
    __m512i last = _mm512_clmulepi64_epi128(lanes, by, 0x11);
    return _mm512_ternarylogic_epi64(first, last, next, 0x96);
}

/* The register after the 64 bytes of lanes, the register before having been added to their first 4. */
WITH_FOLDING static inline uint32_t finish(__m512i lanes) {
    __m512i folded = fold(lanes, _mm512_loadu_si512(into_last_lane), _mm512_setzero_si512());
    __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(folded), _mm512_extracti64x4_epi64(folded, 1));
    __m128i rest = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    rest = _mm_xor_si128(rest, _mm512_extracti64x2_epi64(lanes, 3));
    uint64_t crc = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(rest));
    return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(rest, 1));
}

WITH_FOLDING uint32_t tb_crc_by_folding(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    if (bytes < BLOCK) {
        return tb_crc_by_instruction(crc, data, bytes);
    }
    pthread_once(&factors_made, make_factors);
    const __m512i by_block = _mm512_loadu_si512(over_block);
    const __m512i by_line = _mm512_loadu_si512(over_line);
    __m512i a = _mm512_loadu_si512(data);
    __m512i b = _mm512_loadu_si512(data + LINE);
    __m512i c = _mm512_loadu_si512(data + 2 * LINE);
    __m512i d = _mm512_loadu_si512(data + 3 * LINE);
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (data += BLOCK, bytes -= BLOCK; bytes >= BLOCK; data += BLOCK, bytes -= BLOCK) {
        a = fold(a, by_block, _mm512_loadu_si512(data));
        b = fold(b, by_block, _mm512_loadu_si512(data + LINE));
        c = fold(c, by_block, _mm512_loadu_si512(data + 2 * LINE));
        d = fold(d, by_block, _mm512_loadu_si512(data + 3 * LINE));
    }
    b = fold(a, by_line, b);
    c = fold(b, by_line, c);
    d = fold(c, by_line, d);
    for (; bytes >= LINE; data += LINE, bytes -= LINE) {
        d = fold(d, by_line, _mm512_loadu_si512(data));
    }
    return tb_crc_by_instruction(finish(d), data, bytes);
}

#else

uint32_t tb_crc_by_folding(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    return tb_crc_by_tables(crc, data, bytes);
}

#endif
