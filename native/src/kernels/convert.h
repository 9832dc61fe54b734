/*
 * One element from one type to another, without a branch, so that a loop over it becomes vector code on any
 * processor. The rules are those of docs/element-types.md. Narrow floats go by way of float32. Every NaN
 * becomes the one canonical NaN of its type. Conversions of C that would be undefined (a float outside of an
 * integer's range) are never reached. The kernels of native/cuda are made of the same functions.
 */
#ifndef TB_CONVERT_H
#define TB_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "base/function.h"

TB_FUNCTION uint32_t tb_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

TB_FUNCTION float tb_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

TB_FUNCTION double tb_double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define TB_FLOAT_NAN tb_float_of_bits(0x7fc00000u)
#define TB_DOUBLE_NAN tb_double_of_bits(0x7ff8000000000000u)

/* ---- narrow floats to float32: exact ------------------------------------------------------------------- */

/*
 * A subnormal is its integer times a power of two, which is a product of normal numbers. To shift it into the
 * subnormals of float32 and scale it from there would cost an assist of the processor.
 */
TB_FUNCTION float tb_float_of_f16(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu;
    uint32_t sign = (half & 0x8000u) << 16;
    uint32_t normal = (magnitude << 13) + (112u << 23);
    uint32_t tiny = tb_bits_of_float((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = magnitude < 0x400u ? tiny : normal;
    bits = magnitude == 0x7c00u ? 0x7f800000u : bits;
    return tb_float_of_bits(magnitude > 0x7c00u ? 0x7fc00000u : bits | sign);
}

TB_FUNCTION float tb_float_of_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    return tb_float_of_bits((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits);
}

TB_FUNCTION float tb_float_of_e5m2(uint8_t quarter) {
    return tb_float_of_f16((uint16_t)(quarter << 8));
}

TB_FUNCTION float tb_float_of_e4m3fn(uint8_t quarter) {
    uint32_t magnitude = quarter & 0x7fu;
    uint32_t sign = (quarter & 0x80u) << 24;
    uint32_t normal = (magnitude << 20) + (120u << 23);
    uint32_t tiny = tb_bits_of_float((float)(int32_t)magnitude * 0x1p-9f);
    uint32_t bits = magnitude < 8u ? tiny : normal;
    return tb_float_of_bits(magnitude == 0x7fu ? 0x7fc00000u : bits | sign);
}

/* ---- float32 to narrow floats: to nearest, ties to even ------------------------------------------------ */

/*
 * The magnitude of a float32 rounded to `mantissa` bits in a format whose exponent's bias is `bias`, range
 * aside. Its subnormals: adding the power of two whose last place is the format's smallest number makes the
 * processor round.
 */
TB_FUNCTION uint32_t tb_round_magnitude(uint32_t magnitude, uint32_t mantissa, uint32_t bias) {
    uint32_t shift = 23 - mantissa;
    uint32_t odd = (magnitude >> shift) & 1u;
    uint32_t normal = ((magnitude + ((1u << (shift - 1)) - 1u) + odd) >> shift) - ((127u - bias) << mantissa);
    uint32_t magic = (127u - bias + shift + 1u) << 23;
    uint32_t tiny = tb_bits_of_float(tb_float_of_bits(magnitude) + tb_float_of_bits(magic)) - magic;
    return magnitude < (128u - bias) << 23 ? tiny : normal;
}

TB_FUNCTION uint16_t tb_f16_of_float(float value) {
    uint32_t bits = tb_bits_of_float(value);
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t rounded = tb_round_magnitude(magnitude, 10, 15);
    rounded = magnitude >= 0x477ff000u ? 0x7c00u : rounded; /* 65520 and more */
    rounded |= (bits >> 16) & 0x8000u;
    return (uint16_t)(magnitude > 0x7f800000u ? 0x7e00u : rounded);
}

TB_FUNCTION uint16_t tb_bf16_of_float(float value) {
    uint32_t bits = tb_bits_of_float(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(value != value ? 0x7fc0u : rounded);
}

TB_FUNCTION uint8_t tb_e5m2_of_float(float value) {
    uint32_t bits = tb_bits_of_float(value);
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t rounded = tb_round_magnitude(magnitude, 2, 15);
    rounded = magnitude >= 0x47700000u ? 0x7cu : rounded; /* 61440 and more */
    rounded |= (bits >> 24) & 0x80u;
    return (uint8_t)(magnitude > 0x7f800000u ? 0x7fu : rounded);
}

/* It has no infinity: what is larger than 448 becomes 448. */
TB_FUNCTION uint8_t tb_e4m3fn_of_float(float value) {
    uint32_t bits = tb_bits_of_float(value);
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t rounded = tb_round_magnitude(magnitude, 3, 7);
    rounded = magnitude >= 0x43e00000u ? 0x7eu : rounded;
    rounded |= (bits >> 24) & 0x80u;
    return (uint8_t)(magnitude > 0x7f800000u ? 0x7fu : rounded);
}

/* ---- floats to integers: towards zero, saturating, NaN is 0 -------------------------------------------- */

/*
 * The value is brought into range before C converts it. `top` is one past the largest integer and exact,
 * `below` the largest float under it, which need not be the integer's own largest.
 */
#define TB_TRUNCATE(name, integer, floating, low, below, top, highest)                                       \
    TB_FUNCTION integer name(floating value) {                                                             \
        floating inside = value > (low) ? value : (low);                                                     \
        inside = inside < (below) ? inside : (below);                                                        \
        integer whole = (integer)(value == value ? inside : 0);                                              \
        return value >= (top) ? (highest) : whole;                                                           \
    }

TB_TRUNCATE(tb_i64_of_double, int64_t, double, -0x1p63, 0x1.fffffffffffffp62, 0x1p63, INT64_MAX)
TB_TRUNCATE(tb_i32_of_double, int32_t, double, -0x1p31, 0x1.fffffffcp30, 0x1p31, INT32_MAX)
TB_TRUNCATE(tb_i64_of_float, int64_t, float, -0x1p63f, 0x1.fffffep62f, 0x1p63f, INT64_MAX)
TB_TRUNCATE(tb_i32_of_float, int32_t, float, -0x1p31f, 0x1.fffffep30f, 0x1p31f, INT32_MAX)

TB_FUNCTION int32_t tb_clamp_i32(int32_t value, int32_t low, int32_t high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

TB_FUNCTION int16_t tb_i16_of_float(float value) {
    return (int16_t)tb_clamp_i32(tb_i32_of_float(value), INT16_MIN, INT16_MAX);
}
TB_FUNCTION int8_t tb_i8_of_float(float value) {
    return (int8_t)tb_clamp_i32(tb_i32_of_float(value), INT8_MIN, INT8_MAX);
}
TB_FUNCTION uint8_t tb_u8_of_float(float value) {
    return (uint8_t)tb_clamp_i32(tb_i32_of_float(value), 0, UINT8_MAX);
}
TB_FUNCTION int16_t tb_i16_of_double(double value) {
    return (int16_t)tb_clamp_i32(tb_i32_of_double(value), INT16_MIN, INT16_MAX);
}
TB_FUNCTION int8_t tb_i8_of_double(double value) {
    return (int8_t)tb_clamp_i32(tb_i32_of_double(value), INT8_MIN, INT8_MAX);
}
TB_FUNCTION uint8_t tb_u8_of_double(double value) {
    return (uint8_t)tb_clamp_i32(tb_i32_of_double(value), 0, UINT8_MAX);
}

/* ---- float32 and float64 ------------------------------------------------------------------------------- */

TB_FUNCTION float tb_float_of_double(double value) {
    float rounded = (float)value;
    return value == value ? rounded : TB_FLOAT_NAN;
}

TB_FUNCTION double tb_double_of_float(float value) {
    double exact = (double)value;
    return value == value ? exact : TB_DOUBLE_NAN;
}

#endif
