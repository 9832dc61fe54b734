/* Programs with bytes changed at random: each is refused, or does no harm if it is not. */
#include "kernels/dtype.h"
#include "world_kit.h"

static uint64_t seed = 88172645463325252u;

static uint64_t next_random(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* A program of everything: folds, casts, strides, dependencies. */
static kit_program everything(kit *k, uint32_t rank) {
    enum { ELEMENTS = 1000 };
    kit_start(k, 2, 2);
    kit_tensor(k, 0, TB_BFLOAT16, ELEMENTS * 4, TB_FLOAT32, ELEMENTS * 8);
    for (int p = 0; p < 2; p++) {
        kit_piece_add(k, 1, 0, TB_BFLOAT16, 0, ELEMENTS, 1, 3);
        for (uint32_t member = 0; member < 3; member++) {
            kit_bucket *bucket = kit_bucket_add(k, 0, member, 1, 0);
            bucket->fold_after = member == 0 ? -1 : k->bucket_count - 2;
            kit_reduce(k, bucket, 0, member, kit_run(p * ELEMENTS * 2, ELEMENTS * 2), p);
        }
        int complete = k->bucket_count - 1;
        for (uint32_t target = 0; target < 3; target++) {
            kit_bucket *bucket = kit_bucket_add(k, 1, 1, target, 1);
            bucket->dependencies[bucket->dependency_count++] = complete;
            kit_copy(k, bucket, 0, ELEMENTS, kit_in_piece(p), kit_rows(p * 4, ELEMENTS, 8, 4));
        }
    }
    return kit_build(k, rank, 8192);
}

static int32_t load(const uint8_t *bytes, uint64_t count, const tb_binding *bindings,
                    uint32_t binding_count) {
    tb_program program;
    tb_error err;
    int32_t code = tb_program_load(&program, bytes, count, bindings, binding_count, 1, 3, &err);
    if (code == TB_OK) {
        tb_program_free(&program);
    }
    return code;
}

/* Some bytes of a program are damaged: whether it is refused. */
static bool refuses(const kit_program *good, const tb_binding bindings[2]) {
    uint8_t *bytes = malloc(good->byte_count);
    memcpy(bytes, good->bytes, good->byte_count);
    int changes = 1 + (int)(next_random() % 3);
    for (int c = 0; c < changes; c++) {
        static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff};
        uint64_t at = next_random() % good->byte_count;
        bytes[at] = next_random() % 2 ? (uint8_t)next_random() : telling[next_random() % 5];
    }
    bool refused = load(bytes, good->byte_count, bindings, 2) != TB_OK;
    free(bytes);
    return refused;
}

int main(int argc, char **argv) {
    kit k;
    kit_program good = everything(&k, 1);
    static uint8_t memory[2][8000];
    tb_binding bindings[2] = {{(uint64_t)(uintptr_t)memory[0], 4000}, {(uint64_t)(uintptr_t)memory[1], 8000}};
    CHECK(good.buffer_count == 2);
    CHECK(load(good.bytes, good.byte_count, bindings, 2) == TB_OK);
    for (uint64_t length = 0; length < good.byte_count; length++) {
        CHECK(load(good.bytes, length, bindings, 2) != TB_OK);
    }
    bindings[0].bytes -= 2;
    CHECK(load(good.bytes, good.byte_count, bindings, 2) == TB_EREGION);
    bindings[0].bytes += 2;
    CHECK(load(good.bytes, good.byte_count, bindings, 1) == TB_ETENSOR_MISSING);
    uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    seed += argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    int refused = 0;
    enum { TRIES = 200000 };
    for (uint64_t until = test_now() + seconds * SECOND, first = 1; first || test_now() < until; first = 0) {
        for (int i = 0; i < TRIES; i++) {
            refused += refuses(&good, bindings);
        }
    }
    /* Most bytes matter; digest, sizes that only announce, and the like may be anything. */
    CHECK(refused > TRIES / 2);
    free(good.bytes);
    kit_free(&k);
    return 0;
}
