/* Runs a test once for every level of vector instructions that this processor has. */
#ifndef TB_TEST_ISA_LEVELS_H
#define TB_TEST_ISA_LEVELS_H

#include <stdio.h>
#include <string.h>

#include "kernels/isa.h"

static inline void at_every_level(void (*test)(void)) {
    for (int level = 0; level < TB_ISA_COUNT; level++) {
        /* An architecture with one level has one name for all. */
        if (level > 0 && strcmp(tb_isa_name((tb_isa)level), tb_isa_name(TB_ISA_BASE)) == 0) {
            break;
        }
        tb_isa_limit((tb_isa)level);
        if ((int)tb_isa_level() < level) {
            fprintf(stderr, "  not run for %s: this processor lacks it\n", tb_isa_name((tb_isa)level));
            continue;
        }
        test();
    }
    tb_isa_limit(TB_ISA_COUNT - 1);
}

#endif
