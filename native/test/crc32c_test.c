/* CRC-32C: known values, every way against the definition, and continuing at any place. */
#include "check.h"
#include "kernels/crc32c.h"
#include "kernels/isa.h"
#include "tensorbus.h"

enum { ROOM = 40000 };
static uint8_t data[ROOM + 64];

static uint32_t by_definition(uint32_t crc, const uint8_t *at, uint64_t bytes) {
    for (crc = ~crc; bytes > 0; bytes--, at++) {
        crc ^= *at;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
        }
    }
    return ~crc;
}

/* RFC 3720, B.4, and the customary check value. */
static void known_values(void) {
    uint8_t block[32];
    CHECK(tb_crc32c(0, "123456789", 9) == 0xe3069283u, "check value");
    CHECK(tb_crc32c(0, NULL, 0) == 0, "nothing");
    memset(block, 0, sizeof block);
    CHECK(tb_crc32c(0, block, 32) == 0x8a9136aau, "32 zeros");
    memset(block, 0xff, sizeof block);
    CHECK(tb_crc32c(0, block, 32) == 0x62a8ab43u, "32 ones");
    for (int i = 0; i < 32; i++) {
        block[i] = (uint8_t)i;
    }
    CHECK(tb_crc32c(0, block, 32) == 0x46dd794eu, "ascending");
}

static void every_length(uint64_t *random) {
    for (uint64_t bytes = 0; bytes < 1200; bytes++) {
        uint64_t at = random_next(random) % 64;
        uint32_t expected = by_definition(0, data + at, bytes);
        CHECK(tb_crc32c(0, data + at, bytes) == expected, "%llu bytes", (unsigned long long)bytes);
    }
    for (int turn = 0; turn < 40; turn++) {
        uint64_t bytes = random_next(random) % ROOM;
        uint64_t cut = bytes == 0 ? 0 : random_next(random) % bytes;
        uint64_t at = random_next(random) % 64;
        uint32_t expected = by_definition(0, data + at, bytes);
        CHECK(tb_crc32c(0, data + at, bytes) == expected, "%llu bytes", (unsigned long long)bytes);
        uint32_t continued = tb_crc32c(tb_crc32c(0, data + at, cut), data + at + cut, bytes - cut);
        CHECK(continued == expected, "%llu bytes cut at %llu", (unsigned long long)bytes,
              (unsigned long long)cut);
    }
}

int main(void) {
    uint64_t random = 1;
    random_fill(&random, data, sizeof data);
    for (int level = 0; level < TB_CRC_COUNT; level++) {
        tb_crc_limit((tb_crc_isa)level);
        known_values();
        every_length(&random);
    }
    return 0;
}
