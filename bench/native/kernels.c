/*
 * Measures the host kernels, each beside a memcpy that reads and writes as many bytes in all, run in turns
 * with it. Prints one JSON object a case: nanoseconds are medians, ratio is memcpy's time over the kernel's.
 *
 *     kernels [REPEATS [FILTER]]
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "kernels/cast.h"
#include "kernels/pack.h"

enum { MAX_REPEATS = 1001 };

/* Of the larger side of a case: what fits into a second-level cache, and what fits into none. */
static const struct {
    const char *name;
    uint64_t bytes;
} places[] = {{"cache", 256 << 10}, {"memory", 128 << 20}};

typedef struct bench_case {
    const char *name;
    uint32_t to;
    uint32_t from;
    int64_t run_bytes; /* of the strided side; 0: packed; of a matrix whose columns become rows, a row */
    enum { CAST, PACK, UNPACK, MOVE, TURN, REDUCE, CHECKSUM } kind;
} bench_case;

enum { TURNED_COLUMNS = 1024 };

static const bench_case cases[] = {
    {"cast float32 bfloat16", TB_BFLOAT16, TB_FLOAT32, 0, CAST},
    {"cast bfloat16 float32", TB_FLOAT32, TB_BFLOAT16, 0, CAST},
    {"cast float32 float16", TB_FLOAT16, TB_FLOAT32, 0, CAST},
    {"cast float16 float32", TB_FLOAT32, TB_FLOAT16, 0, CAST},
    {"cast float32 float8_e4m3fn", TB_FLOAT8_E4M3FN, TB_FLOAT32, 0, CAST},
    {"cast float8_e4m3fn float32", TB_FLOAT32, TB_FLOAT8_E4M3FN, 0, CAST},
    {"cast float32 float8_e5m2", TB_FLOAT8_E5M2, TB_FLOAT32, 0, CAST},
    {"cast float8_e4m3fn bfloat16", TB_BFLOAT16, TB_FLOAT8_E4M3FN, 0, CAST},
    {"cast float16 bfloat16", TB_BFLOAT16, TB_FLOAT16, 0, CAST},
    {"cast float64 float32", TB_FLOAT32, TB_FLOAT64, 0, CAST},
    {"cast float32 int32", TB_INT32, TB_FLOAT32, 0, CAST},
    {"cast float32 int8", TB_INT8, TB_FLOAT32, 0, CAST},
    {"cast int64 int32", TB_INT32, TB_INT64, 0, CAST},
    {"cast int64 float32", TB_FLOAT32, TB_INT64, 0, CAST},
    {"pack runs of 2", TB_BFLOAT16, TB_BFLOAT16, 2, PACK},
    {"pack runs of 4", TB_FLOAT32, TB_FLOAT32, 4, PACK},
    {"pack runs of 8", TB_FLOAT32, TB_FLOAT32, 8, PACK},
    {"pack runs of 12", TB_FLOAT32, TB_FLOAT32, 12, PACK},
    {"pack runs of 16", TB_FLOAT32, TB_FLOAT32, 16, PACK},
    {"pack runs of 32", TB_FLOAT32, TB_FLOAT32, 32, PACK},
    {"pack runs of 48", TB_FLOAT32, TB_FLOAT32, 48, PACK},
    {"pack runs of 64", TB_FLOAT32, TB_FLOAT32, 64, PACK},
    {"pack runs of 128", TB_FLOAT32, TB_FLOAT32, 128, PACK},
    {"pack runs of 200", TB_FLOAT32, TB_FLOAT32, 200, PACK},
    {"pack runs of 256", TB_FLOAT32, TB_FLOAT32, 256, PACK},
    {"pack runs of 1024", TB_FLOAT32, TB_FLOAT32, 1024, PACK},
    {"pack runs of 4096", TB_FLOAT32, TB_FLOAT32, 4096, PACK},
    {"pack packed", TB_FLOAT32, TB_FLOAT32, 0, PACK},
    {"unpack runs of 4", TB_FLOAT32, TB_FLOAT32, 4, UNPACK},
    {"unpack runs of 16", TB_FLOAT32, TB_FLOAT32, 16, UNPACK},
    {"unpack runs of 64", TB_FLOAT32, TB_FLOAT32, 64, UNPACK},
    {"unpack runs of 256", TB_FLOAT32, TB_FLOAT32, 256, UNPACK},
    {"unpack runs of 1024", TB_FLOAT32, TB_FLOAT32, 1024, UNPACK},
    {"pack runs of 64 casting float32 bfloat16", TB_BFLOAT16, TB_FLOAT32, 64, PACK},
    {"pack runs of 1024 casting float32 bfloat16", TB_BFLOAT16, TB_FLOAT32, 1024, PACK},
    {"unpack runs of 1024 casting bfloat16 float32", TB_FLOAT32, TB_BFLOAT16, 1024, UNPACK},
    {"move packed", TB_FLOAT32, TB_FLOAT32, 0, MOVE},
    {"move runs of 64 to packed", TB_FLOAT32, TB_FLOAT32, 64, MOVE},
    {"move runs of 1024 to packed", TB_FLOAT32, TB_FLOAT32, 1024, MOVE},
    {"move turned elements of 1", TB_UINT8, TB_UINT8, TURNED_COLUMNS, TURN},
    {"move turned elements of 2", TB_BFLOAT16, TB_BFLOAT16, 2 * TURNED_COLUMNS, TURN},
    {"move turned elements of 4", TB_FLOAT32, TB_FLOAT32, 4 * TURNED_COLUMNS, TURN},
    {"move turned elements of 8", TB_FLOAT64, TB_FLOAT64, 8 * TURNED_COLUMNS, TURN},
    {"move packed casting float32 bfloat16", TB_BFLOAT16, TB_FLOAT32, 0, MOVE},
    {"sum float32", TB_FLOAT32, TB_FLOAT32, 0, REDUCE},
    {"sum float64", TB_FLOAT64, TB_FLOAT64, 0, REDUCE},
    {"sum bfloat16", TB_FLOAT32, TB_BFLOAT16, 0, REDUCE},
    {"sum float16", TB_FLOAT32, TB_FLOAT16, 0, REDUCE},
    {"sum int32", TB_INT32, TB_INT32, 0, REDUCE},
    {"crc32c", TB_UINT8, TB_UINT8, 0, CHECKSUM},
};

static uint64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *times, int count) {
    qsort(times, (size_t)count, sizeof times[0], by_value);
    return times[count / 2];
}

/* Keeps the compiler from leaving out a checksum that nobody reads. */
static volatile uint32_t sink;

/* The strided side holds every second run. A matrix that is turned is read column by column. */
static void run_case(const bench_case *what, uint8_t *to, uint8_t *from, uint64_t count) {
    int64_t size = tb_dtype_size(what->kind == UNPACK ? what->to : what->from);
    int64_t run = what->run_bytes == 0 ? (int64_t)count * size : what->run_bytes;
    int64_t descriptor[5] = {0, 1, (int64_t)count * size / run, 2 * run, run};
    tb_cursor cursor;
    int64_t packed[3] = {0, 0, (int64_t)count * tb_dtype_size(what->to)};
    tb_end end = {(uintptr_t)to, UINT32_MAX, packed, 3, what->to};
    tb_end begin = {(uintptr_t)from, UINT32_MAX, descriptor, 5, what->from};
    int64_t columns[7] = {0, 2, run / size, size, (int64_t)count * size / run, run, size};
    tb_end across = {(uintptr_t)from, UINT32_MAX, columns, 7, what->from};
    tb_cursor_start(&cursor, what->kind == UNPACK ? to : from, descriptor);
    switch (what->kind) {
        case CAST: tb_cast(to, what->to, from, what->from, count); break;
        case PACK: tb_cursor_pack(&cursor, what->from, to, what->to, count); break;
        case UNPACK: tb_cursor_unpack(&cursor, what->to, from, what->from, count); break;
        case MOVE: tb_move(&end, &begin, NULL); break;
        case TURN: tb_move(&end, &across, NULL); break;
        case REDUCE: tb_reduce(to, from, count, what->from, TB_PARTIAL_SUM, 0, NULL); break;
        case CHECKSUM: sink = tb_crc32c(0, from, count); break;
    }
}

static uint64_t touched_bytes(const bench_case *what, uint64_t count) {
    uint64_t in = count * tb_dtype_size(what->from);
    uint64_t out = count * tb_dtype_size(what->to);
    return what->kind == REDUCE ? in + 2 * out : what->kind == CHECKSUM ? in : in + out;
}

static void measure(const bench_case *what, const char *place, uint64_t bytes, int repeats, uint8_t *to,
                    uint8_t *from) {
    static uint64_t kernel[MAX_REPEATS];
    static uint64_t copy[MAX_REPEATS];
    uint64_t largest = tb_dtype_size(what->to) > tb_dtype_size(what->from) ? tb_dtype_size(what->to)
                                                                          : tb_dtype_size(what->from);
    uint64_t run_elements =
        what->run_bytes == 0
            ? 1
            : (uint64_t)what->run_bytes / tb_dtype_size(what->kind == UNPACK ? what->to : what->from);
    uint64_t count = bytes / largest / run_elements * run_elements;
    uint64_t touched = touched_bytes(what, count);
    /* A small case is run several times between two looks at the clock. */
    uint64_t turns = touched < (8u << 20) ? (8u << 20) / touched : 1;
    for (int repeat = -1; repeat < repeats; repeat++) {
        uint64_t begin = now();
        for (uint64_t turn = 0; turn < turns; turn++) {
            run_case(what, to, from, count);
        }
        uint64_t middle = now();
        for (uint64_t turn = 0; turn < turns; turn++) {
            memcpy(to, from, touched / 2);
            __asm__ volatile("" : : : "memory");
        }
        uint64_t end = now();
        if (repeat >= 0) { /* the first one warms up */
            kernel[repeat] = (middle - begin) / turns;
            copy[repeat] = (end - middle) / turns;
        }
    }
    uint64_t kernel_ns = median(kernel, repeats);
    uint64_t copy_ns = median(copy, repeats);
    printf("{\"case\":\"%s\",\"place\":\"%s\",\"elements\":%llu,\"touchedBytes\":%llu,\"nanoseconds\":%llu,"
           "\"memcpyNanoseconds\":%llu,\"gigabytesPerSecond\":%.2f,\"ratio\":%.3f}\n",
           what->name, place, (unsigned long long)count, (unsigned long long)touched,
           (unsigned long long)kernel_ns, (unsigned long long)copy_ns, (double)touched / (double)kernel_ns,
           (double)copy_ns / (double)kernel_ns);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int repeats = argc > 1 ? atoi(argv[1]) : 11;
    if (repeats < 1 || repeats > MAX_REPEATS) {
        fprintf(stderr, "usage: kernels [REPEATS [FILTER]], 1 to %d repeats\n", MAX_REPEATS);
        return 2;
    }
    const char *filter = argc > 2 ? argv[2] : "";
    fprintf(stderr, "%s\n", tb_build_info());
    uint64_t room = 3 * places[1].bytes; /* twice the largest side if every second run is left out */
    uint8_t *to = aligned_alloc(4096, room);
    uint8_t *from = aligned_alloc(4096, room);
    if (to == NULL || from == NULL) {
        fprintf(stderr, "no memory\n");
        return 3;
    }
    memset(to, 0, room);
    /* Ones of every float type: no NaN, and sums that stay finite. */
    memset(from, 0x38, room);
    for (size_t place = 0; place < sizeof places / sizeof places[0]; place++) {
        for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
            char name[128];
            snprintf(name, sizeof name, "kernels/%s/%s", places[place].name, cases[index].name);
            if (strstr(name, filter) == NULL) {
                continue;
            }
            measure(&cases[index], places[place].name, places[place].bytes, repeats, to, from);
        }
    }
    free(from);
    free(to);
    return 0;
}
