/* CRC-32C: its tables, its algebra, and which implementation is used. No lock is needed. */
#include "kernels/crc32c.h"

#include <pthread.h>
#include <string.h>

#include "kernels/isa.h"
#include "tensorbus.h"

/* The polynomial of Castagnoli less x^32, its bits reversed as in the register. */
#define POLYNOMIAL 0x82f63b78u
#define X_TO_0 0x80000000u
#define X_TO_1 0x40000000u

uint32_t tb_crc_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = X_TO_0; bit != 0; bit >>= 1) {
        product ^= b & (0u - (uint32_t)((a & bit) != 0));
        b = (b >> 1) ^ (POLYNOMIAL & (0u - (b & 1u)));
    }
    return product;
}

uint32_t tb_crc_power(uint64_t n) {
    uint32_t power = X_TO_0;
    for (uint32_t square = X_TO_1; n > 0; n >>= 1) {
        if ((n & 1) != 0) {
            power = tb_crc_multiply(power, square);
        }
        square = tb_crc_multiply(square, square);
    }
    return power;
}

/* [k][b]: the register after byte b and k more bytes of zero. */
static uint32_t tables[8][256];
static pthread_once_t tables_made = PTHREAD_ONCE_INIT;

static void make_tables(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1u)));
        }
        tables[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        for (int zeros = 1; zeros < 8; zeros++) {
            uint32_t crc = tables[zeros - 1][byte];
            tables[zeros][byte] = (crc >> 8) ^ tables[0][crc & 0xff];
        }
    }
}

uint32_t tb_crc_by_tables(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    pthread_once(&tables_made, make_tables);
    for (; bytes >= 8; bytes -= 8, data += 8) {
        crc ^= (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        crc = tables[7][crc & 0xff] ^ tables[6][(crc >> 8) & 0xff] ^ tables[5][(crc >> 16) & 0xff]
              ^ tables[4][crc >> 24] ^ tables[3][data[4]] ^ tables[2][data[5]] ^ tables[1][data[6]]
              ^ tables[0][data[7]];
    }
    for (; bytes > 0; bytes--, data++) {
        crc = (crc >> 8) ^ tables[0][(crc ^ *data) & 0xff];
    }
    return crc;
}

uint32_t tb_crc32c(uint32_t crc, const void *data, uint64_t bytes) {
    switch (tb_crc_level()) {
        case TB_CRC_FOLDING: return ~tb_crc_by_folding(~crc, data, bytes);
        case TB_CRC_INSTRUCTION: return ~tb_crc_by_instruction(~crc, data, bytes);
        default: return ~tb_crc_by_tables(~crc, data, bytes);
    }
}
