/* Descriptors: what is refused, with the code, and that nothing which is accepted leaves its memory. */
#include <limits.h>

#include "check.h"
#include "kernels/cursor.h"
#include "kernels/descriptor.h"

#define WORDS(...) (const int64_t[]){__VA_ARGS__}
#define COUNT(...) (sizeof(WORDS(__VA_ARGS__)) / sizeof(int64_t))
#define REFUSED(expected, item, bytes, ...)                                                                  \
    refused(expected, WORDS(__VA_ARGS__), COUNT(__VA_ARGS__), item, bytes)
#define ACCEPTED(total, item, bytes, ...) accepted(total, WORDS(__VA_ARGS__), COUNT(__VA_ARGS__), item, bytes)

static void refused(int32_t expected, const int64_t *words, uint64_t count, uint64_t item, uint64_t bytes) {
    /* On the heap, so that a read beyond the words is seen. */
    int64_t *copy = malloc(count * sizeof *copy);
    memcpy(copy, words, count * sizeof *copy);
    uint64_t total;
    uint32_t used;
    tb_error err;
    int32_t code = tb_descriptor_check(copy, count, item, bytes, &total, &used, &err);
    CHECK(code == expected && err.code == expected, "%d: %s", code, err.message);
    CHECK(tb_descriptor_check(copy, count, item, bytes, NULL, NULL, NULL) == expected, "without outputs");
    free(copy);
}

static void accepted(uint64_t expected, const int64_t *words, uint64_t count, uint64_t item, uint64_t bytes) {
    uint64_t total = 0;
    uint32_t used = 0;
    tb_error err;
    int32_t code = tb_descriptor_check(words, count, item, bytes, &total, &used, &err);
    CHECK(code == TB_OK, "%s", err.message);
    CHECK(total == expected, "%llu bytes", (unsigned long long)total);
    CHECK(used == 3 + 2 * (uint32_t)words[1], "%u words", used);
}

static void malformed(void) {
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 0);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 1, 4, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, -1, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, INT64_MIN, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, INT64_MAX, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, TB_MAX_DIMS + 1, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 0, 0);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 0, -4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 0, 6);
    REFUSED(TB_EPLAN_FORMAT, 0, 100, 0, 0, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 1, 0, 8, 4);
    REFUSED(TB_EPLAN_FORMAT, 4, 100, 0, 1, -3, 8, 4);
}

static void out_of_bounds(void) {
    REFUSED(TB_EREGION, 4, 100, -1, 0, 4);
    REFUSED(TB_EREGION, 4, 100, 97, 0, 4);
    REFUSED(TB_EREGION, 4, 100, 0, 0, 104);
    REFUSED(TB_EREGION, 4, 100, 0, 1, 4, 33, 4);
    REFUSED(TB_EREGION, 4, 100, 0, 1, 4, -8, 4);
    REFUSED(TB_EREGION, 4, 0, 0, 0, 4);
    /* One loop leads out downwards, the other back: the corner between them is outside. */
    REFUSED(TB_EREGION, 4, 1000, 40, 2, 3, -32, 3, 32, 4);
}

static void overflowing(void) {
    REFUSED(TB_EPLAN_FORMAT, 1, UINT64_MAX, INT64_MAX, 0, 1);
    REFUSED(TB_EPLAN_FORMAT, 1, UINT64_MAX, 1, 0, INT64_MAX);
    REFUSED(TB_EPLAN_FORMAT, 1, UINT64_MAX, 0, 1, INT64_MAX, 2, 1);
    REFUSED(TB_EPLAN_FORMAT, 1, UINT64_MAX, 0, 1, 3, INT64_MIN, 1);
    REFUSED(TB_EPLAN_FORMAT, 1, UINT64_MAX, 0, 2, 2, INT64_MAX - 1, 2, INT64_MAX - 1, 1);
    /* Strides of 0 stay in place while the bytes in all overflow. */
    REFUSED(TB_EPLAN_FORMAT, 1, UINT64_MAX, 0, 2, INT64_MAX, 0, 2, 0, 1);
    REFUSED(TB_EPLAN_FORMAT, 8, UINT64_MAX, INT64_MIN, 1, 2, INT64_MIN, 8);
}

static void well_formed(void) {
    ACCEPTED(4, 4, 4, 0, 0, 4);
    ACCEPTED(100, 4, 100, 0, 0, 100);
    ACCEPTED(16, 4, 100, 0, 1, 4, 32, 4);
    ACCEPTED(16, 4, 100, 96, 1, 4, -32, 4);
    ACCEPTED(36, 4, 200, 64, 2, 3, -32, 3, 32, 4);
    ACCEPTED(16, 4, 4, 0, 1, 4, 0, 4);
    ACCEPTED(1, 1, 1, 0, 16, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1,
             9, 1, 9, 1, 9, 1);
}

/* Goes to every run, by the definition. */
static void visit(const int64_t *loop, int64_t dims, int64_t at, uint8_t *touched) {
    if (dims == 0) {
        memset(touched + at, 1, (size_t)loop[0]);
        return;
    }
    for (int64_t i = 0; i < loop[0]; i++) {
        visit(loop + 2, dims - 1, at + i * loop[1], touched);
    }
}

/* Random words, near the edges more often than not: what passes reaches no byte outside. */
static void random_words(void) {
    enum { INSIDE = 64, MARGIN = 512 };
    uint64_t random = 7;
    int passed = 0;
    for (int turn = 0; turn < 200000; turn++) {
        int64_t words[9];
        int64_t dims = random_between(&random, 0, 3);
        words[0] = random_between(&random, -4, 40);
        words[1] = dims;
        for (int64_t dim = 0; dim < dims; dim++) {
            words[2 + 2 * dim] = random_between(&random, 0, 4);
            words[3 + 2 * dim] = random_between(&random, -24, 24);
        }
        words[2 + 2 * dims] = random_between(&random, 0, 8);
        uint64_t total;
        uint32_t used;
        if (tb_descriptor_check(words, 9, 2, INSIDE, &total, &used, NULL) != TB_OK) {
            continue;
        }
        passed++;
        uint8_t touched[2 * MARGIN + INSIDE] = {0};
        visit(words + 2, dims, MARGIN + words[0], touched);
        CHECK(memchr(touched, 1, MARGIN) == NULL, "turn %d reaches below", turn);
        CHECK(memchr(touched + MARGIN + INSIDE, 1, MARGIN) == NULL, "turn %d reaches beyond", turn);
    }
    CHECK(passed > 5000, "only %d of the random descriptors were accepted", passed);
}

/* A move refuses before it touches anything. */
static void moves(void) {
    float memory[8] = {0};
    int64_t whole[] = {0, 0, 32};
    int64_t half[] = {0, 0, 16};
    int64_t beyond[] = {4, 0, 32};
    tb_error err;
    tb_end good = {(uintptr_t)memory, 32, whole, 3, 1};
    tb_end other = good;
    other.descriptor = half;
    CHECK(tb_move(&good, &other, &err) == TB_EREGION, "counts differ");
    other.descriptor = beyond;
    CHECK(tb_move(&good, &other, &err) == TB_EREGION, "source outside");
    CHECK(tb_move(&other, &good, NULL) == TB_EREGION, "destination outside");
    other = good;
    other.dtype = 12;
    CHECK(tb_move(&good, &other, &err) == TB_EDTYPE, "unknown type");
    other = good;
    other.descriptor_words = 2;
    CHECK(tb_move(&good, &other, &err) == TB_EPLAN_FORMAT, "truncated");
    other.descriptor_words = 0;
    CHECK(tb_move(&good, &other, &err) == TB_EPLAN_FORMAT, "no words");
    other = good;
    other.base = UINT64_MAX - 8;
    CHECK(tb_move(&good, &other, &err) == TB_EREGION, "beyond the address space");
    other = good;
    other.bytes = UINT64_MAX;
    CHECK(tb_move(&good, &other, &err) == TB_EREGION, "longer than the address space");
}

int main(void) {
    malformed();
    out_of_bounds();
    overflowing();
    well_formed();
    random_words();
    moves();
    return 0;
}
