#include <string.h>

#include "tensorbus.h"

/* The polynomial of Castagnoli, its bits reversed. */
#define POLYNOMIAL 0x82f63b78u

static uint32_t crc_byte_by_byte(uint32_t crc, const uint8_t *at, uint64_t bytes) {
    for (; bytes > 0; bytes--, at++) {
        crc ^= *at;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1u)));
        }
    }
    return crc;
}

uint32_t tb_crc32c(uint32_t crc, const void *data, uint64_t bytes) {
    return ~crc_byte_by_byte(~crc, data, bytes);
}
