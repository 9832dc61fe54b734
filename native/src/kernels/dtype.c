/* Sizes and names of element types. No lock is needed. */
#include "kernels/dtype.h"

#include "kernels/cursor.h"

static const uint8_t item_sizes[TB_DTYPE_COUNT] = {
    [TB_FLOAT64] = 8, [TB_FLOAT32] = 4,       [TB_FLOAT16] = 2,     [TB_BFLOAT16] = 2,
    [TB_FLOAT8_E4M3FN] = 1, [TB_FLOAT8_E5M2] = 1, [TB_INT64] = 8, [TB_INT32] = 4,
    [TB_INT16] = 2,   [TB_INT8] = 1,          [TB_UINT8] = 1,       [TB_BOOL] = 1,
};

uint32_t tb_dtype_size(uint32_t dtype) {
    return dtype < TB_DTYPE_COUNT ? item_sizes[dtype] : 0;
}

uint32_t tb_accumulator_size(uint32_t dtype) {
    return tb_dtype_is_narrow_float(dtype) ? 4 : tb_dtype_size(dtype);
}
