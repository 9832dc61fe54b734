/* The loops of tb_reduce, as a template: see cast_loops.h. */
#include "kernels/reduce_table.h"

#define TB_FOLD(type_name, op_name, type, expression)                                                        \
    static void TB_ISA(type_name##_##op_name)(void *restrict acc, const void *restrict in, uint64_t count) { \
        uint8_t *restrict acc_at = acc;                                                                      \
        const uint8_t *restrict in_at = in;                                                                  \
        for (uint64_t i = 0; i < count; i++) {                                                               \
            type a;                                                                                          \
            type b;                                                                                          \
            memcpy(&a, acc_at + i * sizeof a, sizeof a);                                                     \
            memcpy(&b, in_at + i * sizeof b, sizeof b);                                                      \
            a = (type)(expression);                                                                          \
            memcpy(acc_at + i * sizeof a, &a, sizeof a);                                                     \
        }                                                                                                    \
    }

/* A NaN on either side gives NaN: one in a fails every comparison and stays. */
#define TB_FOLD_FLOAT(name, type)                                                                            \
    TB_FOLD(name, sum, type, a + b)                                                                          \
    TB_FOLD(name, product, type, a *b)                                                                       \
    TB_FOLD(name, max, type, b > a || b != b ? b : a)                                                        \
    TB_FOLD(name, min, type, b < a || b != b ? b : a)

/*
 * Sum and product wrap, and are the same in signed and unsigned arithmetic, of which only the latter is
 * defined. `wide` is at least an unsigned int, since C would widen a uint16_t to a signed one.
 */
#define TB_FOLD_INTEGER(name, type, wide)                                                                    \
    TB_FOLD(name, sum, type, (wide)a + (wide)b)                                                              \
    TB_FOLD(name, product, type, (wide)a *(wide)b)                                                           \
    TB_FOLD(name, max, type, b > a ? b : a)                                                                  \
    TB_FOLD(name, min, type, b < a ? b : a)

TB_FOLD_FLOAT(f64, double)
TB_FOLD_FLOAT(f32, float)
TB_FOLD_INTEGER(i64, int64_t, uint64_t)
TB_FOLD_INTEGER(i32, int32_t, uint32_t)
TB_FOLD_INTEGER(i16, int16_t, uint32_t)
TB_FOLD_INTEGER(i8, int8_t, uint32_t)
TB_FOLD_INTEGER(u8, uint8_t, uint32_t)
TB_FOLD(bool, or, uint8_t, (a | b) != 0)
TB_FOLD(bool, and, uint8_t, (a != 0) & (b != 0))

#define TB_DIVIDE(name, type)                                                                                \
    static void TB_ISA(name##_divide)(void *acc, uint64_t count, uint64_t divisor) {                         \
        uint8_t *acc_at = acc;                                                                               \
        type by = (type)divisor;                                                                             \
        for (uint64_t i = 0; i < count; i++) {                                                               \
            type a;                                                                                          \
            memcpy(&a, acc_at + i * sizeof a, sizeof a);                                                     \
            a /= by;                                                                                         \
            memcpy(acc_at + i * sizeof a, &a, sizeof a);                                                     \
        }                                                                                                    \
    }

TB_DIVIDE(f64, double)
TB_DIVIDE(f32, float)

#define TB_FOLD_ROW(name)                                                                                    \
    {                                                                                                        \
        [TB_PARTIAL_SUM] = TB_ISA(name##_sum),                                                               \
        [TB_PARTIAL_PRODUCT] = TB_ISA(name##_product),                                                       \
        [TB_PARTIAL_MAX] = TB_ISA(name##_max),                                                               \
        [TB_PARTIAL_MIN] = TB_ISA(name##_min),                                                               \
    }

const tb_reduce_table TB_ISA(tb_reduce_loops) = {
    .fold = {
        [TB_FLOAT64] = TB_FOLD_ROW(f64),
        [TB_FLOAT32] = TB_FOLD_ROW(f32),
        [TB_INT64] = TB_FOLD_ROW(i64),
        [TB_INT32] = TB_FOLD_ROW(i32),
        [TB_INT16] = TB_FOLD_ROW(i16),
        [TB_INT8] = TB_FOLD_ROW(i8),
        [TB_UINT8] = TB_FOLD_ROW(u8),
        [TB_BOOL] = {
            [TB_PARTIAL_SUM] = TB_ISA(bool_or), [TB_PARTIAL_PRODUCT] = TB_ISA(bool_and),
            [TB_PARTIAL_MAX] = TB_ISA(bool_or), [TB_PARTIAL_MIN] = TB_ISA(bool_and),
        },
    },
    .divide_f32 = TB_ISA(f32_divide),
    .divide_f64 = TB_ISA(f64_divide),
};
