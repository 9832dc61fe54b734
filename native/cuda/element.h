/*
 * One element, its type known only as it runs: loaded, cast, combined, stored. C and CUDA; what becomes of a
 * value is decided by convert.h alone, which the loops for host memory are made of, too. If a type is a
 * constant at the call, nothing is left of the switches.
 */
#ifndef TB_CUDA_ELEMENT_H
#define TB_CUDA_ELEMENT_H

#include "kernels/convert.h"
#include "kernels/dtype.h"

enum tb_number_kind { TB_NUMBER_F64, TB_NUMBER_F32, TB_NUMBER_I64 };

/* Every element has its value, exactly, in one of three types. */
typedef struct tb_number {
    uint32_t kind;
    double f64;
    float f32;
    int64_t i64;
} tb_number;

TB_FUNCTION tb_number tb_number_f64(double value) {
    tb_number number = {TB_NUMBER_F64, value, 0, 0};
    return number;
}
TB_FUNCTION tb_number tb_number_f32(float value) {
    tb_number number = {TB_NUMBER_F32, 0, value, 0};
    return number;
}
TB_FUNCTION tb_number tb_number_i64(int64_t value) {
    tb_number number = {TB_NUMBER_I64, 0, 0, value};
    return number;
}

TB_FUNCTION uint32_t tb_element_bytes(uint32_t dtype) {
    switch (dtype) {
    case TB_FLOAT64:
    case TB_INT64:
        return 8;
    case TB_FLOAT32:
    case TB_INT32:
        return 4;
    case TB_FLOAT16:
    case TB_BFLOAT16:
    case TB_INT16:
        return 2;
    default:
        return 1;
    }
}

TB_FUNCTION uint64_t tb_bits_of_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The value of an element that has these bits. A bool other than 0 and 1 counts as 1. */
TB_FUNCTION tb_number tb_number_of_bits(uint32_t dtype, uint64_t bits) {
    switch (dtype) {
    case TB_FLOAT64:
        return tb_number_f64(tb_double_of_bits(bits));
    case TB_FLOAT32:
        return tb_number_f32(tb_float_of_bits((uint32_t)bits));
    case TB_FLOAT16:
        return tb_number_f32(tb_float_of_f16((uint16_t)bits));
    case TB_BFLOAT16:
        return tb_number_f32(tb_float_of_bf16((uint16_t)bits));
    case TB_FLOAT8_E4M3FN:
        return tb_number_f32(tb_float_of_e4m3fn((uint8_t)bits));
    case TB_FLOAT8_E5M2:
        return tb_number_f32(tb_float_of_e5m2((uint8_t)bits));
    case TB_INT64:
        return tb_number_i64((int64_t)bits);
    case TB_INT32:
        return tb_number_i64((int32_t)bits);
    case TB_INT16:
        return tb_number_i64((int16_t)bits);
    case TB_INT8:
        return tb_number_i64((int8_t)bits);
    case TB_UINT8:
        return tb_number_i64((uint8_t)bits);
    default:
        return tb_number_i64((uint8_t)bits != 0);
    }
}

TB_FUNCTION double tb_double_of_number(tb_number number) {
    switch (number.kind) {
    case TB_NUMBER_F64:
        return number.f64;
    case TB_NUMBER_F32:
        return tb_double_of_float(number.f32);
    default:
        return (double)number.i64;
    }
}

TB_FUNCTION float tb_float_of_number(tb_number number) {
    switch (number.kind) {
    case TB_NUMBER_F64:
        return tb_float_of_double(number.f64);
    case TB_NUMBER_F32:
        return number.f32;
    default:
        return (float)number.i64;
    }
}

/* The low bits of an integer, a float towards zero and into range. */
#define TB_INTEGER_OF_NUMBER(name, type, of_double, of_float)                                                \
    TB_FUNCTION type name(tb_number number) {                                                                \
        switch (number.kind) {                                                                               \
        case TB_NUMBER_F64:                                                                                  \
            return of_double(number.f64);                                                                    \
        case TB_NUMBER_F32:                                                                                  \
            return of_float(number.f32);                                                                     \
        default:                                                                                             \
            return (type)number.i64;                                                                         \
        }                                                                                                    \
    }
TB_INTEGER_OF_NUMBER(tb_i64_of_number, int64_t, tb_i64_of_double, tb_i64_of_float)
TB_INTEGER_OF_NUMBER(tb_i32_of_number, int32_t, tb_i32_of_double, tb_i32_of_float)
TB_INTEGER_OF_NUMBER(tb_i16_of_number, int16_t, tb_i16_of_double, tb_i16_of_float)
TB_INTEGER_OF_NUMBER(tb_i8_of_number, int8_t, tb_i8_of_double, tb_i8_of_float)
TB_INTEGER_OF_NUMBER(tb_u8_of_number, uint8_t, tb_u8_of_double, tb_u8_of_float)

TB_FUNCTION bool tb_bool_of_number(tb_number number) {
    switch (number.kind) {
    case TB_NUMBER_F64:
        return number.f64 != 0;
    case TB_NUMBER_F32:
        return number.f32 != 0;
    default:
        return number.i64 != 0;
    }
}

/* The bits of the element of that type which a value becomes. */
TB_FUNCTION uint64_t tb_bits_of_number(uint32_t dtype, tb_number number) {
    switch (dtype) {
    case TB_FLOAT64:
        return tb_bits_of_double(tb_double_of_number(number));
    case TB_FLOAT32:
        return tb_bits_of_float(tb_float_of_number(number));
    case TB_FLOAT16:
        return tb_f16_of_float(tb_float_of_number(number));
    case TB_BFLOAT16:
        return tb_bf16_of_float(tb_float_of_number(number));
    case TB_FLOAT8_E4M3FN:
        return tb_e4m3fn_of_float(tb_float_of_number(number));
    case TB_FLOAT8_E5M2:
        return tb_e5m2_of_float(tb_float_of_number(number));
    case TB_INT64:
        return (uint64_t)tb_i64_of_number(number);
    case TB_INT32:
        return (uint32_t)tb_i32_of_number(number);
    case TB_INT16:
        return (uint16_t)tb_i16_of_number(number);
    case TB_INT8:
        return (uint8_t)tb_i8_of_number(number);
    case TB_UINT8:
        return tb_u8_of_number(number);
    default:
        return tb_bool_of_number(number);
    }
}

/* ---- reductions: as the loops of native/src/kernels/reduce_loops.h
 * --------------------------------------------------------- */

#define TB_COMBINE_FLOAT(name, type)                                                                         \
    TB_FUNCTION type name(uint32_t op, type a, type b) {                                                     \
        switch (op) {                                                                                        \
        case TB_PARTIAL_PRODUCT:                                                                             \
            return a * b;                                                                                    \
        case TB_PARTIAL_MAX:                                                                                 \
            return b > a || b != b ? b : a;                                                                  \
        case TB_PARTIAL_MIN:                                                                                 \
            return b < a || b != b ? b : a;                                                                  \
        default:                                                                                             \
            return a + b;                                                                                    \
        }                                                                                                    \
    }
TB_COMBINE_FLOAT(tb_combine_f64, double)
TB_COMBINE_FLOAT(tb_combine_f32, float)

/* Only the low bits of sums and products count, which are those of the narrower type. */
TB_FUNCTION int64_t tb_combine_i64(uint32_t op, int64_t a, int64_t b) {
    switch (op) {
    case TB_PARTIAL_PRODUCT:
        return (int64_t)((uint64_t)a * (uint64_t)b);
    case TB_PARTIAL_MAX:
        return b > a ? b : a;
    case TB_PARTIAL_MIN:
        return b < a ? b : a;
    default:
        return (int64_t)((uint64_t)a + (uint64_t)b);
    }
}

TB_FUNCTION int64_t tb_combine_bool(uint32_t op, int64_t a, int64_t b) {
    return op == TB_PARTIAL_PRODUCT || op == TB_PARTIAL_MIN ? a & b : a | b;
}

TB_FUNCTION uint32_t tb_accumulator_type(uint32_t dtype) {
    return tb_dtype_is_narrow_float(dtype) ? (uint32_t)TB_FLOAT32 : dtype;
}

/* acc op in; acc has the bits of an element of the accumulator's type, in those of one of dtype. */
TB_FUNCTION uint64_t tb_combine_bits(uint32_t dtype, uint32_t op, uint64_t acc, uint64_t in) {
    uint32_t wide = tb_accumulator_type(dtype);
    tb_number a = tb_number_of_bits(wide, acc);
    tb_number b = tb_number_of_bits(dtype, in);
    switch (a.kind) {
    case TB_NUMBER_F64:
        return tb_bits_of_double(tb_combine_f64(op, a.f64, b.f64));
    case TB_NUMBER_F32:
        return tb_bits_of_float(tb_combine_f32(op, a.f32, b.f32));
    default:
        return dtype == TB_BOOL ? (uint64_t)tb_combine_bool(op, a.i64, b.i64)
                                : tb_bits_of_number(wide, tb_number_i64(tb_combine_i64(op, a.i64, b.i64)));
    }
}

/* The bits of the first contribution as an accumulator: its own, or those of its value in float32. */
TB_FUNCTION uint64_t tb_accumulator_of_bits(uint32_t dtype, uint64_t in) {
    return tb_dtype_is_narrow_float(dtype) ? tb_bits_of_number(TB_FLOAT32, tb_number_of_bits(dtype, in)) : in;
}

/* Divided, and rounded once to the element's type. */
TB_FUNCTION uint64_t tb_finished_bits(uint32_t dtype, uint64_t acc, uint64_t divide_by) {
    uint32_t wide = tb_accumulator_type(dtype);
    if (divide_by != 1 && wide == TB_FLOAT64) {
        acc = tb_bits_of_double(tb_double_of_bits(acc) / (double)divide_by);
    } else if (divide_by != 1) {
        acc = tb_bits_of_float(tb_float_of_bits((uint32_t)acc) / (float)divide_by);
    }
    return wide == dtype ? acc : tb_bits_of_number(dtype, tb_number_of_bits(wide, acc));
}

#endif
