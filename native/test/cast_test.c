/*
 * Casts against conversions that are worked out from the definition of the types: a table of all values of a
 * narrow float, searched for the nearest. All pairs of types, every level of vector instructions.
 */
#include <math.h>
#include <stdbool.h>

#include "check.h"
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "isa_levels.h"
#include "kernels/cast.h"

typedef struct narrow_float {
    int exponent_bits;
    int mantissa_bits;
    bool finite; /* no infinity: all ones is the only NaN, and what is too large saturates */
    uint32_t nan;
} narrow_float;

static const narrow_float formats[] = {
    [TB_FLOAT16] = {5, 10, false, 0x7e00},
    [TB_BFLOAT16] = {8, 7, false, 0x7fc0},
    [TB_FLOAT8_E4M3FN] = {4, 3, true, 0x7f},
    [TB_FLOAT8_E5M2] = {5, 2, false, 0x7f},
};

/* The value of a magnitude's bits, as if the exponents had no end. */
static double magnitude_value(const narrow_float *format, uint32_t bits) {
    int bias = (1 << (format->exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> format->mantissa_bits);
    uint32_t mantissa = bits & ((1u << format->mantissa_bits) - 1);
    return exponent == 0
               ? ldexp(mantissa, 1 - bias - format->mantissa_bits)
               : ldexp(mantissa + (1u << format->mantissa_bits), exponent - bias - format->mantissa_bits);
}

static uint32_t infinity_bits(const narrow_float *format) {
    uint32_t all = (1u << (format->exponent_bits + format->mantissa_bits)) - 1;
    return format->finite ? all : all >> format->mantissa_bits << format->mantissa_bits;
}

static double widen(uint32_t dtype, uint32_t bits) {
    const narrow_float *format = &formats[dtype];
    uint32_t sign = 1u << (format->exponent_bits + format->mantissa_bits);
    uint32_t magnitude = bits & (sign - 1);
    uint32_t infinity = infinity_bits(format);
    if (magnitude > infinity || (format->finite && magnitude == infinity)) {
        return NAN;
    }
    double value = magnitude == infinity ? INFINITY : magnitude_value(format, magnitude);
    return (bits & sign) != 0 ? -value : value;
}

static uint32_t narrow(uint32_t dtype, float value) {
    const narrow_float *format = &formats[dtype];
    if (isnan(value)) {
        return format->nan;
    }
    uint32_t sign = signbit(value) ? 1u << (format->exponent_bits + format->mantissa_bits) : 0;
    double wanted = fabs((double)value);
    uint32_t infinity = infinity_bits(format);
    /*
     * The largest magnitude that is not above it, by bisection; then the nearer neighbour, the even one of
     * two.
     */
    uint32_t low = 0;
    uint32_t high = infinity;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (magnitude_value(format, middle) <= wanted) {
            low = middle;
        } else {
            high = middle;
        }
    }
    double below = wanted - magnitude_value(format, low);
    double above = magnitude_value(format, high) - wanted;
    uint32_t nearest = below < above || (below == above && (low & 1) == 0) ? low : high;
    if (format->finite && nearest == infinity) {
        nearest = infinity - 1;
    }
    return sign | nearest;
}

/* A value on its way: exact in each of the three. */
typedef struct value {
    enum { DOUBLE, FLOAT, INTEGER } kind;
    double real;
    int64_t whole;
} value;

static value read_element(uint32_t dtype, const uint8_t *at) {
    value read = {INTEGER, 0, 0};
    uint64_t bits = 0;
    memcpy(&bits, at, tb_dtype_size(dtype));
    switch (dtype) {
        case TB_FLOAT64:
            read.kind = DOUBLE;
            memcpy(&read.real, at, 8);
            break;
        case TB_FLOAT32: {
            float real;
            memcpy(&real, at, 4);
            read.kind = FLOAT;
            read.real = real;
            break;
        }
        case TB_INT64: read.whole = (int64_t)bits; break;
        case TB_INT32: read.whole = (int32_t)bits; break;
        case TB_INT16: read.whole = (int16_t)bits; break;
        case TB_INT8: read.whole = (int8_t)bits; break;
        case TB_UINT8: read.whole = (int64_t)bits; break;
        case TB_BOOL: read.whole = bits != 0; break;
        default:
            read.kind = FLOAT;
            read.real = widen(dtype, (uint32_t)bits);
    }
    return read;
}

static int64_t saturate(double real, double low, double top, int64_t lowest, int64_t highest) {
    return isnan(real) ? 0 : real >= top ? highest : real <= low ? lowest : (int64_t)real;
}

static uint64_t to_integer(uint32_t dtype, value from) {
    static const int bits_of[] = {
        [TB_INT64] = 64, [TB_INT32] = 32, [TB_INT16] = 16, [TB_INT8] = 8, [TB_UINT8] = 8};
    int bits = bits_of[dtype];
    if (from.kind != INTEGER) {
        if (dtype == TB_UINT8) {
            return (uint64_t)saturate(from.real, 0, 256, 0, 255);
        }
        double top = ldexp(1, bits - 1);
        int64_t highest = bits == 64 ? INT64_MAX : (INT64_C(1) << (bits - 1)) - 1;
        return (uint64_t)saturate(from.real, -top, top, -highest - 1, highest);
    }
    return (uint64_t)from.whole;
}

static void write_element(uint32_t dtype, value from, uint8_t *at) {
    uint64_t bits = 0;
    if (dtype == TB_BOOL) {
        bits = from.kind == INTEGER ? from.whole != 0 : !(from.real == 0);
    } else if (!tb_dtype_is_float(dtype)) {
        bits = to_integer(dtype, from);
    } else if (dtype == TB_FLOAT64) {
        double real = from.kind == INTEGER ? (double)from.whole : isnan(from.real) ? (double)NAN : from.real;
        memcpy(&bits, &real, 8);
    } else {
        float real = from.kind == INTEGER ? (float)from.whole : isnan(from.real) ? NAN : (float)from.real;
        if (dtype == TB_FLOAT32) {
            memcpy(&bits, &real, 4);
        } else {
            bits = narrow(dtype, real);
        }
    }
    memcpy(at, &bits, tb_dtype_size(dtype));
}

static uint64_t seed = 5;

/* Bits at random are mostly enormous or tiny: half of the numbers are near what the target can hold. */
static void random_element(uint32_t dtype, uint8_t *at) {
    random_fill(&seed, at, tb_dtype_size(dtype));
    if (dtype > TB_FLOAT32 || (random_next(&seed) & 1) != 0) {
        return;
    }
    int exponent = (int)random_between(&seed, -26, 66);
    double real = ldexp((double)random_between(&seed, -1025, 1025), exponent - 10);
    float single = (float)real;
    memcpy(at, dtype == TB_FLOAT64 ? (void *)&real : (void *)&single, tb_dtype_size(dtype));
}

static void check_cast(uint32_t to, uint32_t from, const uint8_t *in, uint64_t count) {
    uint64_t size = tb_dtype_size(to);
    uint64_t lead = random_next(&seed) % 16;
    /* Exactly as much as it needs, at any alignment. */
    uint8_t *block = malloc(lead + count * size);
    uint8_t *out = block + lead;
    tb_cast(out, to, in, from, count);
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *element = in + i * tb_dtype_size(from);
        uint8_t expected[8] = {0};
        if (to == from) {
            memcpy(expected, element, size);
        } else {
            write_element(to, read_element(from, element), expected);
        }
        if (memcmp(out + i * size, expected, size) != 0) {
            uint64_t source = 0;
            uint64_t got = 0;
            uint64_t want = 0;
            memcpy(&source, element, tb_dtype_size(from));
            memcpy(&got, out + i * size, size);
            memcpy(&want, expected, size);
            CHECK(false, "%s: type %u to %u: %llx gave %llx, not %llx", tb_isa_name(tb_isa_level()), from, to,
                  (unsigned long long)source, (unsigned long long)got, (unsigned long long)want);
        }
    }
    free(block);
}

/* Counts around the width of every vector, and one beyond the buffer of casts in two steps. */
static void every_pair(void) {
    static const uint64_t counts[] = {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 100, 2500};
    for (uint32_t from = 0; from < TB_DTYPE_COUNT; from++) {
        for (uint32_t to = 0; to < TB_DTYPE_COUNT; to++) {
            for (size_t turn = 0; turn < sizeof counts / sizeof counts[0]; turn++) {
                uint64_t count = counts[turn];
                uint32_t size = tb_dtype_size(from);
                uint64_t lead = random_next(&seed) % 16;
                uint8_t *block = malloc(lead + count * size);
                for (uint64_t i = 0; i < count; i++) {
                    random_element(from, block + lead + i * size);
                }
                check_cast(to, from, block + lead, count);
                free(block);
            }
        }
    }
}

static void every_pattern(void) {
    uint16_t *all = malloc(65536 * sizeof *all);
    uint8_t *bytes = malloc(256);
    for (uint32_t i = 0; i < 65536; i++) {
        all[i] = (uint16_t)i;
    }
    for (uint32_t i = 0; i < 256; i++) {
        bytes[i] = (uint8_t)i;
    }
    for (uint32_t from = 0; from < TB_DTYPE_COUNT; from++) {
        for (uint32_t to = 0; to < TB_DTYPE_COUNT && tb_dtype_size(from) <= 2; to++) {
            check_cast(to, from, tb_dtype_size(from) == 2 ? (uint8_t *)all : bytes,
                       tb_dtype_size(from) == 2 ? 65536 : 256);
        }
    }
    free(bytes);
    free(all);
}

/* Every value of a narrow float, the middle between it and the next, and the neighbours of both. */
static void every_tie(void) {
    for (uint32_t to = TB_FLOAT16; to <= TB_FLOAT8_E5M2; to++) {
        uint32_t infinity = infinity_bits(&formats[to]);
        for (uint32_t bits = 0; bits < infinity; bits++) {
            double low = magnitude_value(&formats[to], bits);
            double high = magnitude_value(&formats[to], bits + 1);
            float middle = (float)((low + high) / 2);
            float values[12] = {(float)low, nextafterf((float)low, 0), middle, nextafterf(middle, 0),
                                nextafterf(middle, INFINITY), nextafterf((float)low, INFINITY)};
            for (int i = 0; i < 6; i++) {
                values[6 + i] = -values[i];
            }
            check_cast(to, TB_FLOAT32, (const uint8_t *)values, 12);
        }
    }
}

static void special_values(void) {
    const double reals[] = {0.0,
                            -0.0,
                            1,
                            -1,
                            0.5,
                            -0.5,
                            0.999,
                            -0.999,
                            1.5,
                            -1.5,
                            127.9,
                            128,
                            -128.9,
                            -129,
                            255.9,
                            256,
                            32767.5,
                            32768,
                            -32768.9,
                            -32769,
                            2147483647,
                            2147483647.5,
                            2147483648.0,
                            -2147483648.0,
                            -2147483648.9,
                            -2147483649.0,
                            4294967296.0,
                            9007199254740993.0,
                            9223372036854774784.0,
                            9223372036854775808.0,
                            -9223372036854775808.0,
                            -9223372036854777856.0,
                            1e300,
                            -1e300,
                            1e-300,
                            5e-324,
                            INFINITY,
                            -INFINITY,
                            NAN,
                            -NAN,
                            448,
                            464,
                            464.1,
                            480,
                            57344,
                            61440,
                            65504,
                            65520,
                            3.3895e38,
                            3.4028235677973366e38,
                            1e39};
    enum { REALS = sizeof reals / sizeof reals[0] };
    float singles[REALS];
    for (int i = 0; i < REALS; i++) {
        singles[i] = (float)reals[i];
    }
    const int64_t wholes[] = {0,
                              1,
                              -1,
                              127,
                              128,
                              -128,
                              -129,
                              255,
                              256,
                              257,
                              2049,
                              16777217,
                              65519,
                              65520,
                              INT64_MAX,
                              INT64_MIN,
                              9007199254740993,
                              1099511627777,
                              36028799166447617};
    for (uint32_t to = 0; to < TB_DTYPE_COUNT; to++) {
        check_cast(to, TB_FLOAT64, (const uint8_t *)reals, REALS);
        check_cast(to, TB_FLOAT32, (const uint8_t *)singles, REALS);
        check_cast(to, TB_INT64, (const uint8_t *)wholes, sizeof wholes / sizeof wholes[0]);
    }
}

static void in_place(void) {
    enum { COUNT = 3001 };
    for (uint32_t from = 0; from < TB_DTYPE_COUNT; from++) {
        for (uint32_t to = 0; to < TB_DTYPE_COUNT; to++) {
            uint32_t size = tb_dtype_size(from);
            if (tb_dtype_size(to) != size) {
                continue;
            }
            uint8_t *data = malloc(COUNT * size);
            uint8_t *expected = malloc(COUNT * size);
            random_fill(&seed, data, COUNT * size);
            tb_cast(expected, to, data, from, COUNT);
            tb_cast(data, to, data, from, COUNT);
            CHECK(memcmp(data, expected, COUNT * size) == 0, "type %u to %u in place", from, to);
            free(expected);
            free(data);
        }
    }
}

static void everything(void) {
    every_pair();
    every_pattern();
    every_tie();
    special_values();
    in_place();
}

int main(void) {
    at_every_level(everything);
    return 0;
}
