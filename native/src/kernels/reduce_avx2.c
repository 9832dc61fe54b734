/* Reductions for AVX2. No lock is needed. */
#if defined(__x86_64__)

#include "kernels/reduce_table.h"

#include "kernels/isa_avx2.h"

#define TB_ISA(name) name##_avx2
#include "kernels/reduce_loops.h"

#include "kernels/isa_end.h"

#endif
