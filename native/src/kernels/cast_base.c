/* Casts with what every processor of the architecture has. */
#define TB_ISA(name) name##_base
#include "kernels/cast_loops.h"
