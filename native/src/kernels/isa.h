/*
 * The vector instructions of the processor that runs this, and the choice of kernels by them. Kernels are
 * templates, compiled once for each level in a file of its own (cast_avx2.c, …), and chosen by a table at run
 * time.
 */
#ifndef TB_ISA_H
#define TB_ISA_H

typedef enum tb_isa {
    TB_ISA_BASE = 0, /* what every processor of the architecture has: SSE2, NEON */
    TB_ISA_AVX2 = 1, /* with F16C, as every such processor has it */
    TB_ISA_AVX512 = 2, /* F, BW, DQ and VL */
    TB_ISA_COUNT = 3,
} tb_isa;

/* The highest level that kernels may use. */
tb_isa tb_isa_level(void);
/*
 * Lowers it for tests, which hold the levels against each other; a level that the processor lacks changes
 * nothing.
 */
void tb_isa_limit(tb_isa level);
const char *tb_isa_name(tb_isa level);

/* Instructions for CRC-32C: they come and go apart from the vectors. */
typedef enum tb_crc_isa {
    TB_CRC_TABLES = 0,
    TB_CRC_INSTRUCTION = 1, /* SSE4.2, or ARMv8's CRC */
    TB_CRC_FOLDING = 2,     /* AVX-512 with VPCLMULQDQ */
    TB_CRC_COUNT = 3,
} tb_crc_isa;

tb_crc_isa tb_crc_level(void);
void tb_crc_limit(tb_crc_isa level);
const char *tb_crc_name(tb_crc_isa level);

#endif
