/* Casts with what every processor of the architecture has. No lock is needed. */
#define TB_ISA(name) name##_base
#include "kernels/cast_loops.h"
