/* What all transports and carriers must do with programs, on worlds small enough to say by hand. */
#include "kernels/dtype.h"
#include "world_kit.h"
#include "kernels/cast.h"

static const world_options *transport;

/* ---- moves --------------------------------------------------------------------------------------------- */

static void test_contiguous(void) {
    world w;
    kit k;
    enum { PART = 3 << 20, PARTS = 4 };
    kit_start(&k, 2, 4);
    kit_tensor(&k, 0, TB_UINT8, PART * PARTS, TB_UINT8, PART * PARTS);
    for (int i = 0; i < PARTS; i++) {
        kit_bucket *bucket = kit_bucket_add(&k, 1, 0, 1, 0);
        kit_copy(&k, bucket, 0, PART, kit_run(i * PART, PART), kit_run((PARTS - 1 - i) * PART, PART));
    }
    world_open(&w, transport, 2);
    world_prepare(&w, &k, 0);
    for (uint64_t round = 1; round <= 3; round++) {
        memset(w.memory[1][0][1], 0, PART * PARTS);
        world_round(&w, round);
        for (int i = 0; i < PARTS; i++) {
            CHECK(memcmp(w.memory[0][0][0] + i * PART, w.memory[1][0][1] + (PARTS - 1 - i) * PART, PART)
                  == 0);
        }
    }
    world_release(&w);
    world_close(&w);
    kit_free(&k);
}

/* Rows of `run` bytes out of a matrix into one with another stride, both ways at once, and within a rank. */
static void strided(int64_t run, uint32_t flags) {
    world w;
    kit k;
    const int64_t rows = run < 8192 ? 1500 : 40;
    kit_start(&k, 2, 4);
    uint64_t from_span = (uint64_t)(3 * run * rows);
    uint64_t to_span = (uint64_t)(2 * run * rows);
    kit_tensor(&k, 0, TB_FLOAT32, from_span, TB_FLOAT32, to_span);
    kit_tensor(&k, 1, TB_FLOAT32, from_span, TB_FLOAT32, to_span);
    for (uint32_t source = 0; source < 2; source++) {
        kit_bucket *bucket = kit_bucket_add(&k, 1, source, 1 - source, 0);
        kit_copy(&k, bucket, source, (uint64_t)(run * rows / 4), kit_rows(run, rows, 3 * run, run),
                 kit_rows(0, rows, 2 * run, run));
        kit_bucket *own = kit_bucket_add(&k, 1, source, source, 0);
        kit_copy(&k, own, source, (uint64_t)(run * rows / 4), kit_rows(0, rows, 3 * run, run),
                 kit_rows(run, rows, 2 * run, run));
    }
    world_open(&w, transport, 2);
    world_prepare(&w, &k, flags);
    world_round(&w, 1);
    for (uint32_t t = 0; t < 2; t++) {
        for (int64_t row = 0; row < rows; row++) {
            const uint8_t *from = w.memory[t][t][0] + row * 3 * run;
            CHECK(memcmp(w.memory[1 - t][t][1] + row * 2 * run, from + run, (size_t)run) == 0);
            CHECK(memcmp(w.memory[t][t][1] + row * 2 * run + run, from, (size_t)run) == 0);
        }
    }
    world_close(&w);
    kit_free(&k);
}

static void test_strided(void) {
    strided(4, 0);
    strided(1000, 0);
    strided(2048, 0);
    strided(100000, 0);
    strided(60, TB_TRANSFER_CHECKSUM);
    strided(4096, TB_TRANSFER_CHECKSUM);
    strided(131072, TB_TRANSFER_CHECKSUM);
}

/*
 * float32 to bfloat16 (the sender casts), bfloat16 to float32 (the receiver does), in one bucket of odd
 * sizes.
 */
static void cast(uint32_t flags) {
    world w;
    kit k;
    enum { COUNT = 300007 };
    kit_start(&k, 1, 1);
    kit_tensor(&k, 0, TB_FLOAT32, COUNT * 4, TB_BFLOAT16, COUNT * 2);
    kit_tensor(&k, 1, TB_BFLOAT16, COUNT * 2, TB_FLOAT32, COUNT * 4);
    kit_bucket *bucket = kit_bucket_add(&k, 1, 0, 1, 0);
    kit_copy(&k, bucket, 0, COUNT, kit_run(0, COUNT * 4), kit_run(0, COUNT * 2));
    kit_copy(&k, bucket, 1, COUNT, kit_run(0, COUNT * 2), kit_run(0, COUNT * 4));
    kit_bucket *own = kit_bucket_add(&k, 1, 0, 0, 0);
    kit_copy(&k, own, 0, COUNT, kit_run(0, COUNT * 4), kit_run(0, COUNT * 2));
    world_open(&w, transport, 2);
    world_prepare(&w, &k, flags);
    world_round(&w, 1);
    uint8_t *expected = malloc(COUNT * 4);
    tb_cast(expected, TB_BFLOAT16, w.memory[0][0][0], TB_FLOAT32, COUNT);
    CHECK(memcmp(expected, w.memory[1][0][1], COUNT * 2) == 0);
    CHECK(memcmp(expected, w.memory[0][0][1], COUNT * 2) == 0);
    tb_cast(expected, TB_FLOAT32, w.memory[0][1][0], TB_BFLOAT16, COUNT);
    CHECK(memcmp(expected, w.memory[1][1][1], COUNT * 4) == 0);
    free(expected);
    world_close(&w);
    kit_free(&k);
}

static void test_cast(void) {
    cast(0);
    cast(TB_TRANSFER_CHECKSUM);
}

static void test_empty(void) {
    world w;
    kit k;
    kit_start(&k, 1, 1);
    world_open(&w, transport, 2);
    world_prepare(&w, &k, 0);
    world_round(&w, 1);
    world_round(&w, 7);
    CHECK(tb_transfer_post(w.session[0], w.transfer[0], 7, SECOND, NULL) != TB_OK);
    world_close(&w);
    kit_free(&k);
}

static void test_tiny(void) {
    world w;
    kit k;
    enum { COUNT = 6000 };
    kit_start(&k, 2, 2);
    kit_tensor(&k, 0, TB_UINT8, COUNT * 3, TB_UINT8, COUNT * 3);
    for (uint32_t i = 0; i < COUNT; i++) {
        kit_bucket *bucket = kit_bucket_add(&k, 1, i % 3, 3, 0);
        kit_copy(&k, bucket, 0, 3, kit_run(3 * i, 3), kit_run(3 * i, 3));
    }
    world_open(&w, transport, 4);
    world_prepare(&w, &k, TB_TRANSFER_CHECKSUM);
    for (uint64_t round = 1; round <= 2; round++) {
        memset(w.memory[3][0][1], 0, COUNT * 3);
        world_round(&w, round);
        for (uint32_t i = 0; i < COUNT; i++) {
            CHECK(memcmp(w.memory[3][0][1] + 3 * i, w.memory[i % 3][0][0] + 3 * i, 3) == 0);
        }
    }
    world_close(&w);
    kit_free(&k);
}

/* ---- folds --------------------------------------------------------------------------------------------- */

enum { MEMBERS = 3, OWNER = 1, TARGET = 3 };

/*
 * Ranks 0 to 2 hold partial values, rank 1 owns the pieces and is in the middle of the fold, rank 3 takes the
 * results and rank 1 a copy; with as little in flight as is allowed.
 */
static void reduce(uint8_t dtype, uint64_t elements, int pieces, uint32_t in_flight, uint64_t divisor,
                   uint32_t flags) {
    world w;
    kit k;
    int64_t size = tb_dtype_size(dtype);
    int64_t bytes = (int64_t)elements * size;
    kit_start(&k, in_flight, 1);
    kit_tensor(&k, 0, dtype, (uint64_t)(bytes * pieces), dtype, (uint64_t)(bytes * pieces));
    for (int p = 0; p < pieces; p++) {
        kit_piece_add(&k, OWNER, 0, dtype, 0, elements, divisor, MEMBERS);
        for (uint32_t member = 0; member < MEMBERS; member++) {
            kit_bucket *bucket = kit_bucket_add(&k, 0, member, OWNER, 0);
            bucket->fold_after = member == 0 ? -1 : k.bucket_count - 2;
            kit_reduce(&k, bucket, 0, member, kit_run(p * bytes, bytes), p);
        }
        int complete = k.bucket_count - 1;
        for (uint32_t target = OWNER; target <= TARGET; target += TARGET - OWNER) {
            kit_bucket *bucket = kit_bucket_add(&k, 1, OWNER, target, 1);
            bucket->dependencies[bucket->dependency_count++] = complete;
            kit_copy(&k, bucket, 0, elements, kit_in_piece(p), kit_run(p * bytes, bytes));
        }
    }
    world_open(&w, transport, 4);
    uint64_t piece_bytes = (elements * tb_accumulator_size(dtype) + 63) / 64 * 64;
    w.pool[OWNER] = 2 * piece_bytes;
    world_prepare(&w, &k, flags);
    for (uint64_t round = 1; round <= 2; round++) {
        world_round(&w, round);
        uint8_t *acc = malloc(elements * 8);
        for (int p = 0; p < pieces; p++) {
            for (uint32_t member = 0; member < MEMBERS; member++) {
                CHECK(
                    tb_reduce(acc, w.memory[member][0][0] + p * bytes, elements, dtype, 0, member == 0, NULL)
                    == 0);
            }
            CHECK(tb_reduce_finish(acc, acc, elements, dtype, divisor, NULL) == TB_OK);
            CHECK(memcmp(acc, w.memory[TARGET][0][1] + p * bytes, (size_t)bytes) == 0);
            CHECK(memcmp(acc, w.memory[OWNER][0][1] + p * bytes, (size_t)bytes) == 0);
        }
        free(acc);
    }
    world_close(&w);
    kit_free(&k);
}

static void test_reduce(void) {
    reduce(TB_FLOAT32, 100003, 7, 1, 1, 0);
    reduce(TB_BFLOAT16, 50001, 9, 2, 3, 0);
    reduce(TB_INT64, 7, 300, 3, 1, TB_TRANSFER_CHECKSUM);
    reduce(TB_FLOAT16, 100001, 3, 1, 1, TB_TRANSFER_CHECKSUM);
    reduce(TB_UINT8, 1000001, 3, 2, 1, 0);
}

/* A fanout: rank 1 passes on to rank 2 what it got from rank 0. */
static void test_fanout(void) {
    world w;
    kit k;
    enum { BYTES = 1 << 20, PARTS = 5 };
    kit_start(&k, 1, 1);
    kit_tensor(&k, 0, TB_INT32, BYTES * PARTS, TB_INT32, BYTES * PARTS);
    for (int i = 0; i < PARTS; i++) {
        kit_bucket *cross = kit_bucket_add(&k, 1, 0, 1, 0);
        kit_copy(&k, cross, 0, BYTES / 4, kit_run(i * BYTES, BYTES), kit_run(i * BYTES, BYTES));
        kit_bucket *fanout = kit_bucket_add(&k, 2, 1, 2, 1);
        fanout->dependencies[fanout->dependency_count++] = k.bucket_count - 2;
        kit_copy(&k, fanout, 0, BYTES / 4, kit_run(i * BYTES, BYTES), kit_run(i * BYTES, BYTES));
    }
    world_open(&w, transport, 3);
    world_prepare(&w, &k, 0);
    world_round(&w, 1);
    CHECK(memcmp(w.memory[0][0][0], w.memory[2][0][1], BYTES * PARTS) == 0);
    world_close(&w);
    kit_free(&k);
}

int main(void) {
    static const world_options transports[] = {
        {.kind = TB_BACKEND_MEMORY, .threads = 1, .connections = 1},
        {.kind = TB_BACKEND_MEMORY, .threads = 3, .connections = 1},
        {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1},
        {.kind = TB_BACKEND_TCP, .threads = 2, .connections = 3},
        {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = TB_CARRY_SHM},
        {.kind = TB_BACKEND_TCP,
         .threads = 3,
         .connections = 1,
         .carriers = TB_CARRY_SHM | TB_CARRY_STREAM},
        {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = TB_CARRY_SHM | TB_CARRY_APART},
        {.kind = TB_BACKEND_TCP,
         .threads = 2,
         .connections = 1,
         .carriers = TB_CARRY_SHM | TB_CARRY_APART,
         .shared = true},
        {.kind = TB_BACKEND_MEMORY, .threads = 1, .connections = 1, .carriers = TB_CARRY_SHM},
    };
    for (size_t i = 0; i < sizeof transports / sizeof transports[0]; i++) {
        transport = &transports[i];
        test_empty();
        test_contiguous();
        test_strided();
        test_cast();
        test_tiny();
        test_reduce();
        test_fanout();
    }
    return 0;
}
