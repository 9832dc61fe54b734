/* The element types and Partial operators, by the numbers of src/layout (dtypes, partialOps). */
#ifndef TB_DTYPE_H
#define TB_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/function.h"

enum tb_dtype {
    TB_FLOAT64 = 0,
    TB_FLOAT32 = 1,
    TB_FLOAT16 = 2,
    TB_BFLOAT16 = 3,
    TB_FLOAT8_E4M3FN = 4,
    TB_FLOAT8_E5M2 = 5,
    TB_INT64 = 6,
    TB_INT32 = 7,
    TB_INT16 = 8,
    TB_INT8 = 9,
    TB_UINT8 = 10,
    TB_BOOL = 11,
    TB_DTYPE_COUNT = 12,
};

enum tb_partial_op {
    TB_PARTIAL_SUM = 0,
    TB_PARTIAL_AVG = 1,
    TB_PARTIAL_PRODUCT = 2,
    TB_PARTIAL_MAX = 3,
    TB_PARTIAL_MIN = 4,
    TB_PARTIAL_COUNT = 5,
};

uint32_t tb_dtype_size(uint32_t dtype); /* 0: no such type */
uint32_t tb_accumulator_size(uint32_t dtype);

/* The 16- and 8-bit floats: they accumulate in float32, and are cast by way of it. */
TB_FUNCTION bool tb_dtype_is_narrow_float(uint32_t dtype) {
    return dtype >= TB_FLOAT16 && dtype <= TB_FLOAT8_E5M2;
}

TB_FUNCTION bool tb_dtype_is_float(uint32_t dtype) {
    return dtype <= TB_FLOAT8_E5M2;
}

#endif
