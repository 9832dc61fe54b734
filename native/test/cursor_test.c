/*
 * Cursors against a naive enumeration of the bytes of a descriptor: random loops, random alignment, taken in
 * pieces of random length, by every function that takes them. All memory is exactly as large as it has to be.
 */
#include "check.h"
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "isa_levels.h"
#include "kernels/cast.h"
#include "kernels/descriptor.h"
#include "kernels/pack.h"
#include "kernels/transpose.h"

enum { MAX_WORDS = 3 + 2 * 5 };

typedef struct layout {
    int64_t words[MAX_WORDS];
    int64_t span;   /* bytes of the memory that it needs */
    int64_t total;  /* bytes of its elements */
    int64_t *order; /* offset of each element, in order */
} layout;

static uint64_t seed = 11;
/* Turns whose destination was large enough to be written past the cache. */
static int cold_turns;

/* Loops in random order over disjoint places: strides grow with what lies within. */
static void make_layout(layout *made, int64_t item, int64_t most_elements) {
    static const int64_t runs[] = {1, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 33, 64, 100, 130, 257, 1000};
    int64_t dims = random_between(&seed, most_elements > 3000 ? 3 : 0, 5);
    int64_t run = runs[random_between(&seed, 0, 17)] * item;
    int64_t extent = run;
    int64_t elements = run / item;
    made->words[1] = dims;
    made->words[2 + 2 * dims] = run;
    for (int64_t dim = dims - 1; dim >= 0; dim--) {
        int64_t count = random_between(&seed, 1, most_elements > 3000 ? 40 : 9);
        if (elements * count > most_elements) {
            count = 1;
        }
        int64_t stride = extent + random_between(&seed, 0, 3) * random_between(&seed, 0, 70);
        made->words[2 + 2 * dim] = count;
        made->words[3 + 2 * dim] = stride;
        extent += (count - 1) * stride;
        elements *= count;
    }
    /* One loop in four runs backwards. */
    int64_t offset = random_between(&seed, 0, 40);
    made->span = offset + extent;
    for (int64_t dim = 0; dim < dims; dim++) {
        if (random_between(&seed, 0, 3) == 0) {
            offset += (made->words[2 + 2 * dim] - 1) * made->words[3 + 2 * dim];
            made->words[3 + 2 * dim] = -made->words[3 + 2 * dim];
        }
    }
    made->words[0] = offset;
    made->total = elements * item;
    made->order = malloc((size_t)elements * sizeof(int64_t));
    for (int64_t element = 0; element < elements; element++) {
        int64_t rest = element * item / run;
        int64_t at = offset + element * item % run;
        for (int64_t dim = dims - 1; dim >= 0; dim--) {
            at += rest % made->words[2 + 2 * dim] * made->words[3 + 2 * dim];
            rest /= made->words[2 + 2 * dim];
        }
        made->order[element] = at;
    }
}

/* Memory that begins at any alignment and ends where it ends. */
static uint8_t *make_memory(int64_t bytes, uint8_t **block) {
    int64_t lead = random_between(&seed, 0, 15);
    *block = malloc((size_t)(lead + bytes));
    random_fill(&seed, *block, (size_t)(lead + bytes));
    return *block + lead;
}

static int64_t next_piece(int64_t left) {
    int64_t most = random_between(&seed, 0, 3) == 0 ? left : random_between(&seed, 1, 200);
    int64_t piece = random_between(&seed, 0, most);
    return piece < left ? piece : left;
}

static void check_form(const layout *made, int64_t item) {
    uint64_t total;
    uint32_t used;
    tb_error err;
    CHECK(
        tb_descriptor_check(made->words, MAX_WORDS, (uint64_t)item, (uint64_t)made->span, &total, &used, &err)
            == 0,
        "%s", err.message);
    CHECK((int64_t)total == made->total, "%lld bytes", (long long)total);
}

/* iov and advance, by single bytes of an element too. */
static void walk(void) {
    for (int turn = 0; turn < 300; turn++) {
        layout made;
        make_layout(&made, 1, 3000);
        check_form(&made, 1);
        uint8_t *block;
        uint8_t *memory = make_memory(made.span, &block);
        tb_cursor cursor;
        tb_cursor_start(&cursor, memory, made.words);
        int64_t at = 0;
        while (at < made.total) {
            struct iovec iov[7];
            uint64_t bytes;
            int max = (int)random_between(&seed, 1, 7);
            int64_t want = next_piece(made.total - at) + 1;
            int entries = tb_cursor_iov(&cursor, iov, max, (uint64_t)want, &bytes);
            CHECK(entries >= 1 && entries <= max && (int64_t)bytes <= want, "%d entries", entries);
            int64_t seen = 0;
            for (int entry = 0; entry < entries; entry++) {
                for (size_t byte = 0; byte < iov[entry].iov_len; byte++, seen++) {
                    CHECK((uint8_t *)iov[entry].iov_base + byte == memory + made.order[at + seen],
                          "byte %lld", (long long)(at + seen));
                }
            }
            CHECK(seen == (int64_t)bytes, "%lld bytes in the entries", (long long)seen);
            int64_t step = next_piece(made.total - at);
            tb_cursor_advance(&cursor, (uint64_t)step);
            at += step;
            CHECK(cursor.left == made.total - at, "%lld left", (long long)cursor.left);
        }
        struct iovec none;
        uint64_t bytes = 1;
        CHECK(tb_cursor_iov(&cursor, &none, 1, 100, &bytes) == 0 && bytes == 0, "the end");
        free(made.order);
        free(block);
    }
}

typedef struct pair {
    uint32_t tensor;
    uint32_t wire;
} pair;

static const pair pairs[] = {
    {TB_INT8, TB_INT8},        {TB_FLOAT32, TB_FLOAT32},  {TB_FLOAT64, TB_FLOAT64},
    {TB_INT16, TB_INT16},      {TB_FLOAT32, TB_BFLOAT16}, {TB_BFLOAT16, TB_FLOAT32},
    {TB_FLOAT16, TB_BFLOAT16}, {TB_INT64, TB_UINT8},      {TB_FLOAT8_E4M3FN, TB_FLOAT64}};
enum { PAIRS = sizeof pairs / sizeof pairs[0] };

/* pack and unpack in pieces of any number of elements, both against single elements. */
static void pack_and_unpack(void) {
    for (int turn = 0; turn < 400; turn++) {
        pair types = pairs[turn % PAIRS];
        int64_t size = tb_dtype_size(types.tensor);
        int64_t wire_size = tb_dtype_size(types.wire);
        layout made;
        make_layout(&made, size, turn % 8 == 0 ? 80000 : 3000);
        check_form(&made, size);
        int64_t elements = made.total / size;
        uint8_t *block;
        uint8_t *wire_block;
        uint8_t *memory = make_memory(made.span, &block);
        uint8_t *wire = make_memory(elements * wire_size, &wire_block);
        tb_cursor cursor;
        tb_cursor_start(&cursor, memory, made.words);
        for (int64_t at = 0; at < elements;) {
            int64_t piece = next_piece(elements - at);
            tb_cursor_pack(&cursor, types.tensor, wire + at * wire_size, types.wire, (uint64_t)piece);
            at += piece;
        }
        CHECK(cursor.left == 0, "packed");
        for (int64_t at = 0; at < elements; at++) {
            uint8_t expected[8];
            tb_cast(expected, types.wire, memory + made.order[at], types.tensor, 1);
            CHECK(memcmp(wire + at * wire_size, expected, (size_t)wire_size) == 0, "packed element %lld",
                  (long long)at);
        }
        random_fill(&seed, wire, (size_t)(elements * wire_size));
        uint8_t *before = malloc((size_t)made.span);
        memcpy(before, memory, (size_t)made.span);
        tb_cursor_start(&cursor, memory, made.words);
        cold_turns += cursor.cold != 0;
        for (int64_t at = 0; at < elements;) {
            int64_t piece = next_piece(elements - at);
            tb_cursor_unpack(&cursor, types.tensor, wire + at * wire_size, types.wire, (uint64_t)piece);
            at += piece;
        }
        for (int64_t at = 0; at < elements; at++) {
            tb_cast(before + made.order[at], types.tensor, wire + at * wire_size, types.wire, 1);
        }
        CHECK(memcmp(before, memory, (size_t)made.span) == 0, "unpacked, or what lies between was touched");
        free(before);
        free(made.order);
        free(block);
        free(wire_block);
    }
}

/* The layout of a copy with as many elements: another one, or the same. */
static void make_partner(const layout *of, int64_t of_item, int64_t item, layout *made) {
    int64_t elements = of->total / of_item;
    int kind = (int)random_between(&seed, 0, 2);
    if (kind == 0) {
        int64_t words[] = {0, 0, elements * item};
        memcpy(made->words, words, sizeof words);
    } else if (kind == 1) {
        int64_t words[] = {0, 1, elements, 3 * item, item};
        memcpy(made->words, words, sizeof words);
    } else {
        int64_t run = of->words[2 + 2 * of->words[1]] / of_item;
        int64_t words[] = {0, 1, elements / run, run * item + 5, run * item};
        memcpy(made->words, words, sizeof words);
    }
    int64_t run = made->words[2 + 2 * made->words[1]];
    int64_t stride = made->words[1] == 0 ? 0 : made->words[3];
    made->total = elements * item;
    made->span = (made->total / run - 1) * stride + run;
    made->order = malloc((size_t)elements * sizeof(int64_t));
    for (int64_t element = 0; element < elements; element++) {
        made->order[element] = element * item / run * stride + element * item % run;
    }
}

static void move(void) {
    for (int turn = 0; turn < 400; turn++) {
        pair types = pairs[turn % PAIRS];
        int64_t from_size = tb_dtype_size(types.tensor);
        int64_t to_size = tb_dtype_size(types.wire);
        layout from;
        layout to;
        make_layout(&from, from_size, turn % 8 == 0 ? 80000 : 3000);
        make_partner(&from, from_size, to_size, &to);
        uint8_t *from_block;
        uint8_t *to_block;
        uint8_t *source = make_memory(from.span, &from_block);
        uint8_t *target = make_memory(to.span, &to_block);
        uint8_t *expected = malloc((size_t)to.span);
        memcpy(expected, target, (size_t)to.span);
        for (int64_t at = 0; at < from.total / from_size; at++) {
            tb_cast(expected + to.order[at], types.wire, source + from.order[at], types.tensor, 1);
        }
        tb_end dst = {(uintptr_t)target, (uint64_t)to.span, to.words, 3 + 2 * (uint32_t)to.words[1],
                      types.wire};
        tb_end src = {(uintptr_t)source, (uint64_t)from.span, from.words, 3 + 2 * (uint32_t)from.words[1],
                      types.tensor};
        tb_error err;
        CHECK(tb_move(&dst, &src, &err) == TB_OK, "%s", err.message);
        CHECK(memcmp(expected, target, (size_t)to.span) == 0, "turn %d", turn);
        free(expected);
        free(from.order);
        free(to.order);
        free(from_block);
        free(to_block);
    }
}

/* The dimensions of a dense array in another order: what lies side by side is not what follows each other. */
static void turned_layout(layout *made, int64_t item) {
    int64_t dims = random_between(&seed, 2, 4);
    int64_t counts[4];
    int64_t strides[4];
    int64_t order[4];
    int64_t elements = 1;
    int64_t extent = item * (random_between(&seed, 0, 3) == 0 ? random_between(&seed, 2, 5) : 1);
    int64_t most = dims == 2 ? 300 : dims == 3 ? 70 : 20;
    for (int64_t dim = dims - 1; dim >= 0; dim--) {
        counts[dim] = random_between(&seed, 1, most);
        strides[dim] = extent;
        extent *= counts[dim];
        extent += random_between(&seed, 0, 1) * item * random_between(&seed, 0, 9);
        elements *= counts[dim];
        order[dim] = dim;
    }
    for (int64_t dim = dims - 1; dim > 0; dim--) {
        int64_t other = random_between(&seed, 0, dim);
        int64_t kept = order[dim];
        order[dim] = order[other];
        order[other] = kept;
    }
    int64_t offset = random_between(&seed, 0, 40);
    made->span = offset + extent;
    made->words[1] = dims;
    made->words[2 + 2 * dims] = item;
    for (int64_t dim = 0; dim < dims; dim++) {
        bool backwards = random_between(&seed, 0, 7) == 0;
        int64_t count = counts[order[dim]];
        int64_t stride = strides[order[dim]];
        offset += backwards ? (count - 1) * stride : 0;
        made->words[2 + 2 * dim] = count;
        made->words[3 + 2 * dim] = backwards ? -stride : stride;
    }
    made->words[0] = offset;
    made->total = elements * item;
}

static void turn(void) {
    static const uint32_t types[] = {TB_INT8, TB_BFLOAT16, TB_FLOAT32, TB_INT64};
    int turned = 0;
    for (int turn = 0; turn < 400; turn++) {
        uint32_t dtype = types[turn % 4];
        int64_t size = tb_dtype_size(dtype);
        layout from;
        turned_layout(&from, size);
        uint8_t *from_block;
        uint8_t *to_block;
        uint8_t *source = make_memory(from.span, &from_block);
        uint8_t *target = make_memory(from.total, &to_block);
        turned += tb_transpose(target, source, from.words, size);
        random_fill(&seed, target, (size_t)from.total);
        int64_t words[] = {0, 0, from.total};
        tb_end dst = {(uintptr_t)target, (uint64_t)from.total, words, 3, dtype};
        tb_end src = {(uintptr_t)source, (uint64_t)from.span, from.words, 3 + 2 * (uint32_t)from.words[1],
                      dtype};
        tb_error err;
        CHECK(tb_move(&dst, &src, &err) == TB_OK, "%s", err.message);
        for (int64_t element = 0; element < from.total / size; element++) {
            int64_t rest = element;
            int64_t at = from.words[0];
            for (int64_t dim = from.words[1] - 1; dim >= 0; dim--) {
                at += rest % from.words[2 + 2 * dim] * from.words[3 + 2 * dim];
                rest /= from.words[2 + 2 * dim];
            }
            CHECK(memcmp(target + element * size, source + at, (size_t)size) == 0, "turn %d, element %lld",
                  turn, (long long)element);
        }
        free(from_block);
        free(to_block);
    }
    CHECK(turned >= 100, "only %d layouts were turned by blocks", turned);
}

/* A reduction read through a cursor is that of the packed bytes. */
static void reduce(void) {
    for (int turn = 0; turn < 100; turn++) {
        uint32_t dtype = turn % 2 == 0 ? TB_BFLOAT16 : TB_INT32;
        int64_t size = tb_dtype_size(dtype);
        layout made;
        make_layout(&made, size, 3000);
        int64_t elements = made.total / size;
        uint8_t *block;
        uint8_t *memory = make_memory(made.span, &block);
        uint8_t *packed = malloc((size_t)made.total);
        uint8_t *acc = malloc((size_t)elements * 4);
        uint8_t *expected = malloc((size_t)elements * 4);
        tb_cursor cursor;
        tb_cursor_start(&cursor, memory, made.words);
        tb_cursor_pack(&cursor, dtype, packed, dtype, (uint64_t)elements);
        for (uint32_t first = 2; first-- > 0;) {
            tb_cursor_start(&cursor, memory, made.words);
            for (int64_t at = 0; at < elements;) {
                int64_t piece = next_piece(elements - at);
                tb_cursor_reduce(acc + at * 4, &cursor, (uint64_t)piece, dtype, TB_PARTIAL_MAX, first);
                at += piece;
            }
            CHECK(tb_reduce(expected, packed, (uint64_t)elements, dtype, TB_PARTIAL_MAX, first, NULL)
                      == TB_OK,
                  "max");
        }
        CHECK(memcmp(acc, expected, (size_t)elements * 4) == 0, "turn %d", turn);
        free(expected);
        free(acc);
        free(packed);
        free(made.order);
        free(block);
    }
}

int main(void) {
    walk();
    at_every_level(pack_and_unpack);
    CHECK(cold_turns >= 5, "only %d large destinations", cold_turns);
    at_every_level(move);
    at_every_level(turn);
    at_every_level(reduce);
    return 0;
}
