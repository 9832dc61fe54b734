/* Reductions for AVX2. */
#if defined(__x86_64__)

#include "reduce_table.h"

#include "isa_avx2.h"

#define TB_ISA(name) name##_avx2
#include "reduce_loops.h"

#include "isa_end.h"

#endif
