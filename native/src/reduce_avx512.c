/* Reductions for AVX-512. */
#if defined(__x86_64__)

#include "reduce_table.h"

#include "isa_avx512.h"

#define TB_ISA(name) name##_avx512
#include "reduce_loops.h"

#include "isa_end.h"

#endif
