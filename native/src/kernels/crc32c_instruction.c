/*
 * CRC-32C by the processor's instruction. Each waits for the last one's result, for three cycles: three blocks next to
 * each other are run at once, and put together by shifting the registers of the first two over what follows them. No
 * lock is needed.
 */
#include "kernels/crc32c.h"

#include <pthread.h>
#include <string.h>

#if defined(__x86_64__)

#include <nmmintrin.h>

#define WITH_CRC __attribute__((target("sse4.2")))
#define crc_of_word(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define crc_of_byte(crc, byte) _mm_crc32_u8((crc), (byte))

#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

#define WITH_CRC

/* By name: the headers offer these only if everything is compiled for processors that have them. */
static inline uint32_t crc_of_word(uint32_t crc, uint64_t word) {
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %1" : "+r"(crc) : "r"(word));
    return crc;
}
static inline uint32_t crc_of_byte(uint32_t crc, uint8_t byte) {
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)byte));
    return crc;
}

#endif

#ifdef WITH_CRC

enum { LONG_BLOCK = 4096, SHORT_BLOCK = 256 };

/* [k][b]: byte b at place k of a register, after a block of zeros. */
typedef uint32_t shift_table[4][256];
static shift_table over_long;
static shift_table over_short;
static pthread_once_t tables_made = PTHREAD_ONCE_INIT;

static void make_table(shift_table table, uint64_t zero_bytes) {
    uint32_t power = tb_crc_power(8 * zero_bytes);
    for (int place = 0; place < 4; place++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            table[place][byte] = tb_crc_multiply(byte << (8 * place), power);
        }
    }
}

static void make_tables(void) {
    make_table(over_long, LONG_BLOCK);
    make_table(over_short, SHORT_BLOCK);
}

static inline uint32_t shift(const shift_table table, uint32_t crc) {
    return table[0][crc & 0xff] ^ table[1][(crc >> 8) & 0xff] ^ table[2][(crc >> 16) & 0xff]
           ^ table[3][crc >> 24];
}

static inline uint64_t load(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

WITH_CRC static inline uint32_t three_blocks(uint32_t crc, const uint8_t *data, int block,
                                             const shift_table over) {
    uint32_t second = 0;
    uint32_t third = 0;
    for (int i = 0; i < block; i += 8) {
        crc = crc_of_word(crc, load(data + i));
        second = crc_of_word(second, load(data + block + i));
        third = crc_of_word(third, load(data + 2 * block + i));
    }
    return shift(over, shift(over, crc) ^ second) ^ third;
}

WITH_CRC uint32_t tb_crc_by_instruction(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    pthread_once(&tables_made, make_tables);
    for (; bytes >= 3 * LONG_BLOCK; bytes -= 3 * LONG_BLOCK, data += 3 * LONG_BLOCK) {
        crc = three_blocks(crc, data, LONG_BLOCK, over_long);
    }
    for (; bytes >= 3 * SHORT_BLOCK; bytes -= 3 * SHORT_BLOCK, data += 3 * SHORT_BLOCK) {
        crc = three_blocks(crc, data, SHORT_BLOCK, over_short);
    }
    for (; bytes >= 8; bytes -= 8, data += 8) {
        crc = crc_of_word(crc, load(data));
    }
    for (; bytes > 0; bytes--, data++) {
        crc = crc_of_byte(crc, *data);
    }
    return crc;
}

#else

uint32_t tb_crc_by_instruction(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    return tb_crc_by_tables(crc, data, bytes);
}

#endif
