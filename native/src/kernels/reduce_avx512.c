/* Reductions for AVX-512. No lock is needed. */
#if defined(__x86_64__)

#include "kernels/reduce_table.h"

#include "kernels/isa_avx512.h"

#define TB_ISA(name) name##_avx512
#include "kernels/reduce_loops.h"

#include "kernels/isa_end.h"

#endif
