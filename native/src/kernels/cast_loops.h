/*
 * The loops of tb_cast, as a template: a file defines TB_ISA(name), which gives a name of its own to each set
 * of vector instructions, and includes this. `table` is its only result.
 *
 * Eight types convert into each other in one step. The narrow floats convert to and from float32 only;
 * tb_cast puts the two steps together in a buffer that stays in the first-level cache.
 */
#include "kernels/cast_table.h"
#include "kernels/convert.h"

/* One loop; loads and stores by memcpy, since tensors of any alignment are moved. */
#define TB_LOOP(to, from, to_type, from_type, expression)                                                    \
    static void TB_ISA(to##_of_##from)(void *restrict out, const void *restrict in, uint64_t count) {        \
        uint8_t *restrict to_at = out;                                                                       \
        const uint8_t *restrict from_at = in;                                                                \
        for (uint64_t i = 0; i < count; i++) {                                                               \
            from_type x;                                                                                     \
            memcpy(&x, from_at + i * sizeof x, sizeof x);                                                    \
            to_type y = (to_type)(expression);                                                               \
            memcpy(to_at + i * sizeof y, &y, sizeof y);                                                      \
        }                                                                                                    \
    }

TB_LOOP(f64, f32, double, float, tb_double_of_float(x))
TB_LOOP(i64, f64, int64_t, double, tb_i64_of_double(x))
TB_LOOP(i32, f64, int32_t, double, tb_i32_of_double(x))
TB_LOOP(i16, f64, int16_t, double, tb_i16_of_double(x))
TB_LOOP(i8, f64, int8_t, double, tb_i8_of_double(x))
TB_LOOP(u8, f64, uint8_t, double, tb_u8_of_double(x))
TB_LOOP(f32, f64, float, double, tb_float_of_double(x))
TB_LOOP(bool, f64, uint8_t, double, x != 0)

TB_LOOP(i64, f32, int64_t, float, tb_i64_of_float(x))
TB_LOOP(i32, f32, int32_t, float, tb_i32_of_float(x))
TB_LOOP(i16, f32, int16_t, float, tb_i16_of_float(x))
TB_LOOP(i8, f32, int8_t, float, tb_i8_of_float(x))
TB_LOOP(u8, f32, uint8_t, float, tb_u8_of_float(x))
TB_LOOP(bool, f32, uint8_t, float, x != 0)

/*
 * Integers: C converts to nearest even (Annex F) and wraps modulo two to the width (gcc and clang define it
 * so).
 */
#define TB_FROM_INTEGER(from, from_type)                                                                     \
    TB_LOOP(f64, from, double, from_type, x)                                                                 \
    TB_LOOP(f32, from, float, from_type, x)                                                                  \
    TB_LOOP(bool, from, uint8_t, from_type, x != 0)

TB_FROM_INTEGER(i64, int64_t)
TB_FROM_INTEGER(i32, int32_t)
TB_FROM_INTEGER(i16, int16_t)
TB_FROM_INTEGER(i8, int8_t)
TB_FROM_INTEGER(u8, uint8_t)

TB_LOOP(i32, i64, int32_t, int64_t, x)
TB_LOOP(i16, i64, int16_t, int64_t, x)
TB_LOOP(i8, i64, int8_t, int64_t, x)
TB_LOOP(i64, i32, int64_t, int32_t, x)
TB_LOOP(i16, i32, int16_t, int32_t, x)
TB_LOOP(i8, i32, int8_t, int32_t, x)
TB_LOOP(i64, i16, int64_t, int16_t, x)
TB_LOOP(i32, i16, int32_t, int16_t, x)
TB_LOOP(i8, i16, int8_t, int16_t, x)
TB_LOOP(i64, i8, int64_t, int8_t, x)
TB_LOOP(i32, i8, int32_t, int8_t, x)
TB_LOOP(i16, i8, int16_t, int8_t, x)
TB_LOOP(i64, u8, int64_t, uint8_t, x)
TB_LOOP(i32, u8, int32_t, uint8_t, x)
TB_LOOP(i16, u8, int16_t, uint8_t, x)

/* A byte of a bool other than 0 and 1 counts as true. */
TB_LOOP(f64, bool, double, uint8_t, x != 0)
TB_LOOP(f32, bool, float, uint8_t, x != 0)
TB_LOOP(i64, bool, int64_t, uint8_t, x != 0)
TB_LOOP(i32, bool, int32_t, uint8_t, x != 0)
TB_LOOP(i16, bool, int16_t, uint8_t, x != 0)

static void TB_ISA(i8_of_u8)(void *restrict out, const void *restrict in, uint64_t count) {
    memcpy(out, in, count);
}

TB_LOOP(bf16, f32, uint16_t, float, tb_bf16_of_float(x))
TB_LOOP(f32, bf16, float, uint16_t, tb_float_of_bf16(x))
TB_LOOP(e4m3fn, f32, uint8_t, float, tb_e4m3fn_of_float(x))
TB_LOOP(f32, e4m3fn, float, uint8_t, tb_float_of_e4m3fn(x))
#ifndef TB_F16_BY_HARDWARE
TB_LOOP(f16, f32, uint16_t, float, tb_f16_of_float(x))
TB_LOOP(f32, f16, float, uint16_t, tb_float_of_f16(x))
#endif
TB_LOOP(e5m2, f32, uint8_t, float, tb_e5m2_of_float(x))
TB_LOOP(f32, e5m2, float, uint8_t, tb_float_of_e5m2(x))

const tb_cast_loop TB_ISA(tb_cast_loops)[TB_DTYPE_COUNT][TB_DTYPE_COUNT] = {
    [TB_FLOAT64] = {
        [TB_FLOAT32] = TB_ISA(f64_of_f32),
        [TB_INT64] = TB_ISA(f64_of_i64),
        [TB_INT32] = TB_ISA(f64_of_i32),
        [TB_INT16] = TB_ISA(f64_of_i16),
        [TB_INT8] = TB_ISA(f64_of_i8),
        [TB_UINT8] = TB_ISA(f64_of_u8),
        [TB_BOOL] = TB_ISA(f64_of_bool),
    },
    [TB_FLOAT32] = {
        [TB_FLOAT64] = TB_ISA(f32_of_f64),
        [TB_FLOAT16] = TB_ISA(f32_of_f16),
        [TB_BFLOAT16] = TB_ISA(f32_of_bf16),
        [TB_FLOAT8_E4M3FN] = TB_ISA(f32_of_e4m3fn),
        [TB_FLOAT8_E5M2] = TB_ISA(f32_of_e5m2),
        [TB_INT64] = TB_ISA(f32_of_i64),
        [TB_INT32] = TB_ISA(f32_of_i32),
        [TB_INT16] = TB_ISA(f32_of_i16),
        [TB_INT8] = TB_ISA(f32_of_i8),
        [TB_UINT8] = TB_ISA(f32_of_u8),
        [TB_BOOL] = TB_ISA(f32_of_bool),
    },
    [TB_FLOAT16] = {[TB_FLOAT32] = TB_ISA(f16_of_f32)},
    [TB_BFLOAT16] = {[TB_FLOAT32] = TB_ISA(bf16_of_f32)},
    [TB_FLOAT8_E4M3FN] = {[TB_FLOAT32] = TB_ISA(e4m3fn_of_f32)},
    [TB_FLOAT8_E5M2] = {[TB_FLOAT32] = TB_ISA(e5m2_of_f32)},
    [TB_INT64] = {
        [TB_FLOAT64] = TB_ISA(i64_of_f64),
        [TB_FLOAT32] = TB_ISA(i64_of_f32),
        [TB_INT32] = TB_ISA(i64_of_i32),
        [TB_INT16] = TB_ISA(i64_of_i16),
        [TB_INT8] = TB_ISA(i64_of_i8),
        [TB_UINT8] = TB_ISA(i64_of_u8),
        [TB_BOOL] = TB_ISA(i64_of_bool),
    },
    [TB_INT32] = {
        [TB_FLOAT64] = TB_ISA(i32_of_f64),
        [TB_FLOAT32] = TB_ISA(i32_of_f32),
        [TB_INT64] = TB_ISA(i32_of_i64),
        [TB_INT16] = TB_ISA(i32_of_i16),
        [TB_INT8] = TB_ISA(i32_of_i8),
        [TB_UINT8] = TB_ISA(i32_of_u8),
        [TB_BOOL] = TB_ISA(i32_of_bool),
    },
    [TB_INT16] = {
        [TB_FLOAT64] = TB_ISA(i16_of_f64),
        [TB_FLOAT32] = TB_ISA(i16_of_f32),
        [TB_INT64] = TB_ISA(i16_of_i64),
        [TB_INT32] = TB_ISA(i16_of_i32),
        [TB_INT8] = TB_ISA(i16_of_i8),
        [TB_UINT8] = TB_ISA(i16_of_u8),
        [TB_BOOL] = TB_ISA(i16_of_bool),
    },
    [TB_INT8] = {
        [TB_FLOAT64] = TB_ISA(i8_of_f64),
        [TB_FLOAT32] = TB_ISA(i8_of_f32),
        [TB_INT64] = TB_ISA(i8_of_i64),
        [TB_INT32] = TB_ISA(i8_of_i32),
        [TB_INT16] = TB_ISA(i8_of_i16),
        [TB_UINT8] = TB_ISA(i8_of_u8),
        [TB_BOOL] = TB_ISA(bool_of_u8),
    },
    /* Integers wrap, so that the low byte of a signed type is that of an unsigned one. */
    [TB_UINT8] = {
        [TB_FLOAT64] = TB_ISA(u8_of_f64),
        [TB_FLOAT32] = TB_ISA(u8_of_f32),
        [TB_INT64] = TB_ISA(i8_of_i64),
        [TB_INT32] = TB_ISA(i8_of_i32),
        [TB_INT16] = TB_ISA(i8_of_i16),
        [TB_INT8] = TB_ISA(i8_of_u8),
        [TB_BOOL] = TB_ISA(bool_of_u8),
    },
    [TB_BOOL] = {
        [TB_FLOAT64] = TB_ISA(bool_of_f64),
        [TB_FLOAT32] = TB_ISA(bool_of_f32),
        [TB_INT64] = TB_ISA(bool_of_i64),
        [TB_INT32] = TB_ISA(bool_of_i32),
        [TB_INT16] = TB_ISA(bool_of_i16),
        [TB_INT8] = TB_ISA(bool_of_i8),
        [TB_UINT8] = TB_ISA(bool_of_u8),
    },
};
