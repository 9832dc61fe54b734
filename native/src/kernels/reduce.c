/* Reductions of rows, by the widest vectors that the processor has. No lock is needed. */
#include "kernels/reduce.h"

#include <string.h>

#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "base/error.h"
#include "kernels/reduce_table.h"
#include "kernels/cast.h"

enum { TILE_ELEMENTS = 1024 };

static uint32_t accumulator_of(uint32_t dtype) {
    return tb_dtype_is_narrow_float(dtype) ? (uint32_t)TB_FLOAT32 : dtype;
}

void tb_fold(void *acc, const void *in, uint64_t count, uint32_t dtype, uint32_t partial_op, uint32_t first) {
    const tb_reduce_table *table = tb_reduce_table_now();
    uint32_t wide = accumulator_of(dtype);
    if (first) {
        tb_cast(acc, wide, in, dtype, count);
        return;
    }
    tb_fold_loop fold = table->fold[wide][partial_op == TB_PARTIAL_AVG ? TB_PARTIAL_SUM : partial_op];
    if (wide == dtype) {
        fold(acc, in, count);
        return;
    }
    uint8_t *into = acc;
    const uint8_t *from = in;
    uint32_t size = tb_dtype_size(dtype);
    while (count > 0) {
        float tile[TILE_ELEMENTS];
        uint64_t elements = count < TILE_ELEMENTS ? count : TILE_ELEMENTS;
        tb_cast(tile, TB_FLOAT32, from, dtype, elements);
        fold(into, tile, elements);
        into += elements * sizeof(float);
        from += elements * size;
        count -= elements;
    }
}

static int32_t unknown_dtype(uint32_t dtype, tb_error *err) {
    return tb_fail(err, TB_EDTYPE, -1, 0, "unknown element type %u", dtype);
}

int32_t tb_reduce(void *acc, const void *in, uint64_t count, uint32_t dtype, uint32_t partial_op,
                  uint32_t first, tb_error *err) {
    if (dtype >= TB_DTYPE_COUNT) {
        return unknown_dtype(dtype, err);
    }
    if (partial_op >= TB_PARTIAL_COUNT) {
        return tb_fail(err, TB_EPARTIAL_OP, -1, 0, "unknown Partial operator %u", partial_op);
    }
    tb_fold(acc, in, count, dtype, partial_op, first);
    return TB_OK;
}

int32_t tb_reduce_finish(void *out, void *acc, uint64_t count, uint32_t dtype, uint64_t divisor,
                         tb_error *err) {
    if (dtype >= TB_DTYPE_COUNT) {
        return unknown_dtype(dtype, err);
    }
    if (divisor == 0 || (divisor != 1 && !tb_dtype_is_float(dtype))) {
        return tb_fail(err, TB_EPARTIAL_OP, -1, 0, "element type %u cannot be divided by %llu", dtype,
                       (unsigned long long)divisor);
    }
    uint32_t wide = accumulator_of(dtype);
    if (divisor != 1) {
        const tb_reduce_table *table = tb_reduce_table_now();
        (wide == TB_FLOAT64 ? table->divide_f64 : table->divide_f32)(acc, count, divisor);
    }
    if (out != acc || wide != dtype) {
        tb_cast(out, dtype, acc, wide, count);
    }
    return TB_OK;
}
