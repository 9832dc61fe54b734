/* The ways to CRC-32C, each on the register itself: what tb_crc32c takes and gives is its complement. */
#ifndef TB_CRC32C_H
#define TB_CRC32C_H

#include <stdint.h>

/* The product of two polynomials modulo that of Castagnoli; bit 31 is the coefficient of x^0. */
uint32_t tb_crc_multiply(uint32_t a, uint32_t b);
/* x^n, the same way. */
uint32_t tb_crc_power(uint64_t n);

uint32_t tb_crc_by_tables(uint32_t crc, const uint8_t *data, uint64_t bytes);
/* SSE4.2 or ARMv8's CRC; on other processors never called. */
uint32_t tb_crc_by_instruction(uint32_t crc, const uint8_t *data, uint64_t bytes);
/* AVX-512 with VPCLMULQDQ; on other processors never called. */
uint32_t tb_crc_by_folding(uint32_t crc, const uint8_t *data, uint64_t bytes);

#endif
