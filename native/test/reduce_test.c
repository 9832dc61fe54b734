/*
 * Reductions against one element at a time in plain C: every type and operator, every level of vector
 * instructions.
 */
#include <math.h>

#include "check.h"
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "isa_levels.h"
#include "kernels/cast.h"

static uint64_t seed = 3;

/* The operators on a float; what is NaN stays NaN. */
static double fold_float(uint32_t op, double a, double b) {
    switch (op) {
        case TB_PARTIAL_PRODUCT: return a * b;
        case TB_PARTIAL_MAX: return isnan(a) || isnan(b) ? (double)NAN : b > a ? b : a;
        case TB_PARTIAL_MIN: return isnan(a) || isnan(b) ? (double)NAN : b < a ? b : a;
        default: return a + b;
    }
}

static int64_t fold_integer(uint32_t op, int64_t a, int64_t b) {
    switch (op) {
        case TB_PARTIAL_PRODUCT: return (int64_t)((uint64_t)a * (uint64_t)b);
        case TB_PARTIAL_MAX: return b > a ? b : a;
        case TB_PARTIAL_MIN: return b < a ? b : a;
        default: return (int64_t)((uint64_t)a + (uint64_t)b);
    }
}

static int64_t integer_at(uint32_t dtype, const uint8_t *at) {
    int64_t wide;
    tb_cast(&wide, TB_INT64, at, dtype, 1);
    return wide;
}

static double float_at(uint32_t dtype, const uint8_t *at) {
    double wide;
    tb_cast(&wide, TB_FLOAT64, at, dtype, 1);
    return wide;
}

static void check_one(uint32_t dtype, uint32_t op, const uint8_t *before, const uint8_t *in,
                      const uint8_t *after) {
    uint32_t wide = tb_dtype_is_narrow_float(dtype) ? (uint32_t)TB_FLOAT32 : dtype;
    if (dtype == TB_BOOL) {
        int and = op == TB_PARTIAL_PRODUCT || op == TB_PARTIAL_MIN;
        int expected = and ? (*before != 0 && *in != 0) : (*before != 0 || *in != 0);
        CHECK(*after == expected, "bool, operator %u: %u and %u gave %u", op, *before, *in, *after);
    } else if (!tb_dtype_is_float(dtype)) {
        int64_t whole = fold_integer(op, integer_at(dtype, before), integer_at(dtype, in));
        uint8_t expected[8];
        tb_cast(expected, dtype, &whole, TB_INT64, 1);
        CHECK(memcmp(after, expected, tb_dtype_size(dtype)) == 0, "type %u, operator %u", dtype, op);
    } else {
        double real = fold_float(op, float_at(wide, before), float_at(dtype, in));
        /* The sum of two float32 in float64 is exact enough to be rounded once more without harm. */
        double expected = wide == TB_FLOAT32 ? (double)(float)real : real;
        double got = float_at(wide, after);
        CHECK(got == expected || (isnan(got) && isnan(expected)), "type %u, operator %u: %a, not %a", dtype,
              op, got, expected);
    }
}

/* Random bits hold NaN and infinities often enough for 8 bits; a few more are put among the others. */
static void fill(uint32_t dtype, uint8_t *at, uint64_t count) {
    static const double special[] = {0.0, -0.0, 1, -1, 1e30, INFINITY, -INFINITY, NAN};
    uint32_t size = tb_dtype_size(dtype);
    random_fill(&seed, at, count * size);
    for (uint64_t i = 0; i < count; i++) {
        if (tb_dtype_is_float(dtype) && random_next(&seed) % 4 == 0) {
            tb_cast(at + i * size, dtype, &special[random_next(&seed) % 8], TB_FLOAT64, 1);
        }
    }
}

static void every_operator(void) {
    static const uint64_t counts[] = {0, 1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 64, 65, 130, 2500};
    for (uint32_t dtype = 0; dtype < TB_DTYPE_COUNT; dtype++) {
        uint32_t size = tb_dtype_size(dtype);
        uint32_t acc_size = tb_accumulator_size(dtype);
        for (uint32_t op = 0; op < TB_PARTIAL_COUNT; op++) {
            for (size_t turn = 0; turn < sizeof counts / sizeof counts[0]; turn++) {
                uint64_t count = counts[turn];
                uint64_t lead = random_next(&seed) % 16;
                uint8_t *in_block = malloc(lead + count * size);
                uint8_t *acc_block = malloc(lead + count * acc_size);
                uint8_t *before = malloc(count * acc_size + 1);
                uint8_t *in = in_block + lead;
                uint8_t *acc = acc_block + lead;
                fill(dtype, in, count);
                CHECK(tb_reduce(acc, in, count, dtype, op, 1, NULL) == TB_OK, "first");
                tb_cast(before, tb_dtype_is_narrow_float(dtype) ? (uint32_t)TB_FLOAT32 : dtype, in, dtype,
                        count);
                CHECK(memcmp(acc, before, count * acc_size) == 0, "type %u: the first sets", dtype);
                fill(dtype, in, count);
                CHECK(tb_reduce(acc, in, count, dtype, op, 0, NULL) == TB_OK, "second");
                for (uint64_t i = 0; i < count; i++) {
                    check_one(dtype, op, before + i * acc_size, in + i * size, acc + i * acc_size);
                }
                free(before);
                free(acc_block);
                free(in_block);
            }
        }
    }
}

/* 2049 contributions of 1 and of 1/3 in float16: an accumulator of its own type would stop at 2048. */
static void accumulates_wide(void) {
    uint16_t in[2];
    uint16_t out[2];
    float acc[2];
    const float values[2] = {1.0f, 0.333251953125f};
    tb_cast(in, TB_FLOAT16, values, TB_FLOAT32, 2);
    for (int turn = 0; turn < 2049 * 2; turn++) {
        tb_reduce(acc, in, 2, TB_FLOAT16, TB_PARTIAL_SUM, turn == 0, NULL);
    }
    CHECK(tb_reduce_finish(out, acc, 2, TB_FLOAT16, 1, NULL) == TB_OK, "finish");
    CHECK(float_at(TB_FLOAT16, (uint8_t *)&out[0]) == 4098 - 2, "4098 rounds to even: %g",
          float_at(TB_FLOAT16, (uint8_t *)&out[0]));
    tb_reduce(acc, in, 2, TB_FLOAT16, TB_PARTIAL_SUM, 1, NULL);
    CHECK(acc[1] == values[1], "a third is exact in the accumulator");
}

static void divides_once(void) {
    /* 1 + 2^-8 + 2^-8 is 1 + 2^-7 in float32, of which a third rounds to bfloat16 once. */
    float acc[3] = {3.0f, -1.0f, INFINITY};
    uint16_t out[3];
    CHECK(tb_reduce_finish(out, acc, 3, TB_BFLOAT16, 3, NULL) == TB_OK, "finish");
    CHECK(out[0] == 0x3f80 && out[1] == 0xbeab && out[2] == 0x7f80, "%x %x %x", out[0], out[1], out[2]);
    double wide[2] = {1.0, 10.0};
    CHECK(tb_reduce_finish(wide, wide, 2, TB_FLOAT64, 3, NULL) == TB_OK, "in place");
    CHECK(wide[0] == 1.0 / 3 && wide[1] == 10.0 / 3, "%g %g", wide[0], wide[1]);
    float narrowed[5] = {1, 2, 3, 4, 5};
    CHECK(tb_reduce_finish(narrowed, narrowed, 5, TB_FLOAT8_E5M2, 1, NULL) == TB_OK, "narrow in place");
    CHECK(memcmp(narrowed, "\x3c\x40\x42\x44\x45", 5) == 0, "into the beginning of the accumulator");
}

/* The accumulator may hold its own result: narrower elements move down over it. */
static void finishes_in_place(void) {
    enum { COUNT = 5000 };
    float *acc = malloc(COUNT * sizeof(float));
    uint16_t *expected = malloc(COUNT * sizeof(uint16_t));
    for (int i = 0; i < COUNT; i++) {
        acc[i] = (float)i * 0.37f;
    }
    tb_cast(expected, TB_BFLOAT16, acc, TB_FLOAT32, COUNT);
    CHECK(tb_reduce_finish(acc, acc, COUNT, TB_BFLOAT16, 1, NULL) == TB_OK, "finish");
    CHECK(memcmp(acc, expected, COUNT * sizeof(uint16_t)) == 0, "bfloat16 over its own accumulator");
    free(expected);
    free(acc);
}

static void refuses(void) {
    uint8_t bytes[16] = {0};
    tb_error err;
    CHECK(tb_reduce(bytes, bytes, 1, 12, 0, 0, &err) == TB_EDTYPE, "unknown type");
    CHECK(tb_reduce(bytes, bytes, 1, 0, 5, 0, &err) == TB_EPARTIAL_OP, "unknown operator");
    CHECK(tb_reduce_finish(bytes, bytes, 1, UINT32_MAX, 1, &err) == TB_EDTYPE, "unknown type");
    CHECK(tb_reduce_finish(bytes, bytes, 1, TB_FLOAT32, 0, &err) == TB_EPARTIAL_OP, "division by zero");
    CHECK(tb_reduce_finish(bytes, bytes, 1, TB_INT32, 2, &err) == TB_EPARTIAL_OP, "division of integers");
    CHECK(tb_reduce_finish(bytes, bytes, 1, TB_INT32, 1, &err) == TB_OK, "%s", err.message);
}

static void everything(void) {
    every_operator();
    accumulates_wide();
    divides_once();
    finishes_in_place();
}

int main(void) {
    at_every_level(everything);
    refuses();
    return 0;
}
