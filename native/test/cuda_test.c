/*
 * The kernels of native/cuda against the loops for host memory, by way of the tables that cuda_moves.c makes
 * and the worker, on the double of libcuda: all pairs of types, every operator, descriptors of any kind. No
 * GPU takes part.
 */
#include <math.h>

#include "cuda_kit.h"
#include "cuda/cuda_moves.h"
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "kernels/cast.h"
#include "kernels/pack.h"

enum { ARENA = 64 * 1024 };

/* A list of moves, and its way through the worker. */
typedef struct making {
    tb_cuda_moves *moves;
    uint32_t first, count;
} making;

static int32_t do_make(tb_cuda_worker *worker, void *argument, tb_error *err) {
    making *one = argument;
    tb_cu_stream stream = tb_cuda_worker_stream(worker);
    int32_t code = one->moves->device_moves == 0 ? tb_cuda_moves_upload(one->moves, worker, err) : TB_OK;
    if (code == TB_OK) {
        code = tb_cuda_moves_launch(one->moves, worker, one->first, one->count, stream, err);
    }
    if (code == TB_OK) {
        TB_CUDA_TRY(worker->api, cuStreamSynchronize(stream), err);
    }
    return code;
}

static int32_t do_unload(tb_cuda_worker *worker, void *argument, tb_error *err) {
    (void)err;
    tb_cuda_moves_unload(((making *)argument)->moves, worker);
    return TB_OK;
}

static void make(tb_cuda_worker *worker, tb_cuda_moves *moves, uint32_t groups) {
    tb_error err;
    CHECK(tb_cuda_moves_sort(moves, groups, &err) == TB_OK, "%s", err.message);
    making one = {moves, 0, groups};
    CHECK(tb_cuda_worker_call(worker, do_make, &one, &err) == TB_OK, "%s", err.message);
    tb_cuda_worker_call(worker, do_unload, &one, &err);
    tb_cuda_moves_free(moves);
}

/* ---- divisions
 * ---------------------------------------------------------------------------------------------------- */

static uint32_t divide(uint32_t number, tb_divisor by) {
    return ((uint32_t)((uint64_t)number * by.magic >> 32) + number) >> by.shift;
}

static void divides(void) {
    uint64_t random = 1;
    for (int i = 0; i < 200000; i++) {
        uint32_t by = (uint32_t)random_between(&random, 1, i % 2 ? 0x7fffffff : 1000);
        tb_divisor divisor = tb_divisor_of(by);
        uint32_t near = (uint32_t)random_between(&random, 0, 0x7fffffff) / by * by;
        uint32_t numbers[] = {(uint32_t)random_between(&random, 0, 0x7fffffff), near,
                              near == 0 ? 0 : near - 1, 0x7fffffff};
        for (int n = 0; n < 4; n++) {
            CHECK(divide(numbers[n], divisor) == numbers[n] / by, "%u / %u", numbers[n], by);
        }
    }
}

/* ---- descriptors
 * --------------------------------------------------------------------------------------------------- */

typedef struct box {
    int64_t lengths[8];
    int dims;
    int64_t elements;
} box;

static box random_box(uint64_t *random, int64_t most) {
    box made = {{0}, (int)random_between(random, 0, 6), 1};
    for (int d = 0; d < made.dims; d++) {
        made.lengths[d] = random_between(random, 1, d == made.dims - 1 ? 40 : 5);
        if (made.elements * made.lengths[d] > most) {
            made.lengths[d] = 1;
        }
        made.elements *= made.lengths[d];
    }
    return made;
}

/*
 * A box of a tensor whose rows have some elements too many, dimensions merged where they follow each other,
 * as the planner does. Gives the bytes that it spans.
 */
static int64_t describe(uint64_t *random, const box *of, int64_t item, int64_t *words) {
    int64_t stride = item;
    int64_t span = item;
    int64_t loops[8][2];
    int count = 0;
    int64_t run = item;
    for (int d = of->dims - 1; d >= 0; d--) {
        int64_t length = of->lengths[d];
        if (length > 1 && count == 0 && stride == run) {
            run *= length;
        } else if (length > 1 && count > 0 && stride == loops[count - 1][0] * loops[count - 1][1]) {
            loops[count - 1][0] *= length;
        } else if (length > 1) {
            loops[count][0] = length;
            loops[count++][1] = stride;
        }
        span += (length - 1) * stride;
        int64_t gap = random_between(random, 0, 3) == 0 ? random_between(random, 1, 3) : 0;
        stride *= length + gap;
    }
    words[0] = random_between(random, 0, 4) * item;
    words[1] = count;
    for (int i = 0; i < count; i++) {
        words[2 + 2 * i] = loops[count - 1 - i][0];
        words[3 + 2 * i] = loops[count - 1 - i][1];
    }
    words[2 + 2 * count] = run;
    return words[0] + span;
}

/* ---- copies and casts
 * ------------------------------------------------------------------------------------------------- */

/* Values of every kind: random bits hold NaNs, infinities, subnormals; small integers are what is not lost in
 * a cast. */
static void fill(uint64_t *random, uint8_t *bytes, uint32_t dtype) {
    random_fill(random, bytes, ARENA);
    if (random_between(random, 0, 1)) {
        uint32_t size = tb_dtype_size(dtype);
        for (uint32_t at = 0; at + 8 <= ARENA; at += size) {
            int64_t value = random_between(random, -70000, 70000);
            uint8_t one[8];
            tb_cast(one, dtype, &value, TB_INT64, 1);
            memcpy(bytes + at, dtype == TB_INT64 ? (uint8_t *)&value : one, size);
        }
    }
}

static void move_once(tb_cuda_worker *worker, uint64_t *random, uint64_t device, uint32_t to, uint32_t from) {
    static uint8_t source[ARENA], target[ARENA], got[ARENA];
    int64_t to_words[20], from_words[20];
    box moved = random_box(random, 3000);
    int64_t to_span = describe(random, &moved, tb_dtype_size(to), to_words);
    int64_t from_span = describe(random, &moved, tb_dtype_size(from), from_words);
    if (to_span > ARENA - 64 || from_span > ARENA - 64) {
        return;
    }
    /* From any place: at a multiple of 16, of the element, and of nothing. */
    uint64_t shift = (uint64_t)random_between(random, 0, 2) * (uint64_t)random_between(random, 0, 16);
    fill(random, source, from);
    random_fill(random, target, ARENA);
    device_write(worker, device, source, ARENA);
    device_write(worker, device + ARENA, target, ARENA);
    tb_cuda_ask ask = {.group = 0,
                       .destination = {device + ARENA + shift, to_words, to},
                       .source = {device + shift, from_words, from}};
    tb_error err;
    tb_cuda_moves moves = {0};
    CHECK(tb_cuda_moves_add(&moves, &ask, &err) == TB_OK, "%s", err.message);
    make(worker, &moves, 1);
    device_read(worker, device + ARENA, got, ARENA);
    tb_end to_end = {(uintptr_t)target + shift, ARENA - shift, to_words, (uint32_t)(3 + 2 * to_words[1]), to};
    tb_end from_end = {(uintptr_t)source + shift, ARENA - shift, from_words,
                       (uint32_t)(3 + 2 * from_words[1]), from};
    CHECK(tb_move(&to_end, &from_end, &err) == TB_OK, "%s", err.message);
    for (uint32_t i = 0; i < ARENA; i++) {
        CHECK(target[i] == got[i], "type %u of %u: byte %u is %02x, not %02x", to, from, i, got[i],
              target[i]);
    }
}

static void moves_all(tb_cuda_worker *worker) {
    uint64_t random = 2;
    uint64_t device = device_allocate(worker, 2 * ARENA);
    for (uint32_t to = 0; to < TB_DTYPE_COUNT; to++) {
        for (uint32_t from = 0; from < TB_DTYPE_COUNT; from++) {
            for (int i = 0; i < (to == from ? 12 : 5); i++) {
                move_once(worker, &random, device, to, from);
            }
        }
    }
    device_free(worker, device);
}

/* 2 x 3 onto 3 x 2: two ends that no box has in common. */
static void moves_unlike(tb_cuda_worker *worker) {
    uint8_t source[64], target[64] = {0};
    int64_t from[] = {0, 1, 2, 16, 12};
    int64_t to[] = {0, 1, 3, 12, 8};
    tb_error err;
    for (int i = 0; i < 64; i++) {
        source[i] = (uint8_t)(i + 1);
    }
    uint64_t device = device_allocate(worker, 128);
    device_write(worker, device, source, 64);
    device_write(worker, device + 64, target, 64);
    tb_cuda_moves moves = {0};
    tb_cuda_ask ask = {.destination = {device + 64, to, TB_INT32}, .source = {device, from, TB_INT32}};
    CHECK(tb_cuda_moves_add(&moves, &ask, &err) == TB_OK, "%s", err.message);
    make(worker, &moves, 1);
    device_read(worker, device + 64, target, 64);
    for (int e = 0; e < 6; e++) {
        uint8_t *at = target + e / 2 * 12 + e % 2 * 4;
        CHECK(memcmp(at, source + e / 3 * 16 + e % 3 * 4, 4) == 0, "element %d", e);
    }
    device_free(worker, device);
}

/* Many groups of several kernels, launched in ranges: each is moved when it is asked for, and not before. */
static void moves_ranges(tb_cuda_worker *worker) {
    enum { GROUPS = 40, ROW = 512 };
    static uint8_t host[GROUPS * ROW], got[GROUPS * ROW];
    uint64_t random = 3;
    tb_error err;
    random_fill(&random, host, sizeof host);
    uint64_t from = device_allocate(worker, sizeof host);
    uint64_t to = device_allocate(worker, sizeof host);
    device_write(worker, from, host, sizeof host);
    memset(got, 0, sizeof got);
    device_write(worker, to, got, sizeof got);
    int64_t words[] = {0, 0, ROW};
    tb_cuda_moves moves = {0};
    for (uint32_t g = GROUPS; g-- > 0;) {
        uint32_t dtype = g % 3 == 0 ? TB_INT8 : TB_UINT8;
        tb_cuda_ask ask = {.group = g,
                           .destination = {to + g * ROW, words, dtype},
                           .source = {from + g * ROW, words, TB_UINT8}};
        CHECK(tb_cuda_moves_add(&moves, &ask, &err) == TB_OK, "%s", err.message);
    }
    CHECK(tb_cuda_moves_sort(&moves, GROUPS, &err) == TB_OK, "%s", err.message);
    uint32_t ranges[][2] = {{7, 1}, {20, 20}, {0, 7}, {8, 12}};
    bool done[GROUPS] = {false};
    for (int r = 0; r < 4; r++) {
        making one = {&moves, ranges[r][0], ranges[r][1]};
        CHECK(tb_cuda_worker_call(worker, do_make, &one, &err) == TB_OK, "%s", err.message);
        device_read(worker, to, got, sizeof got);
        for (uint32_t g = 0; g < GROUPS; g++) {
            done[g] |= g >= ranges[r][0] && g < ranges[r][0] + ranges[r][1];
            CHECK((memcmp(got + g * ROW, host + g * ROW, ROW) == 0) == done[g], "group %u after range %d", g,
                  r);
        }
    }
    making one = {&moves, 0, 0};
    tb_cuda_worker_call(worker, do_unload, &one, &err);
    tb_cuda_moves_free(&moves);
    device_free(worker, from);
    device_free(worker, to);
}

/* Long contiguous pieces go to the copy engine, several in a row as one. */
static void moves_rows(tb_cuda_worker *worker) {
    enum { PIECE = 1 << 20, PIECES = 3 };
    static uint8_t host[PIECE * PIECES], got[PIECE * PIECES];
    uint64_t random = 4;
    tb_error err;
    random_fill(&random, host, sizeof host);
    uint64_t from = device_allocate(worker, sizeof host);
    uint64_t to = device_allocate(worker, sizeof host);
    device_write(worker, from, host, sizeof host);
    int64_t words[] = {0, 0, PIECE};
    tb_cuda_moves moves = {0};
    for (uint32_t g = 0; g < PIECES; g++) {
        tb_cuda_ask ask = {.group = g,
                           .destination = {to + g * PIECE, words, TB_FLOAT32},
                           .source = {from + g * PIECE, words, TB_FLOAT32}};
        CHECK(tb_cuda_moves_add(&moves, &ask, &err) == TB_OK, "%s", err.message);
    }
    CHECK(moves.row_count == PIECES && moves.move_count == 0, "%u rows", moves.row_count);
    make(worker, &moves, PIECES);
    device_read(worker, to, got, sizeof got);
    CHECK(memcmp(got, host, sizeof got) == 0, "rows");
    device_free(worker, from);
    device_free(worker, to);
}

/* ---- reductions
 * ------------------------------------------------------------------------------------------------------------
 */

static bool same_number(const uint8_t *a, const uint8_t *b, uint32_t dtype) {
    double x[2];
    uint32_t size = tb_dtype_size(dtype);
    if (memcmp(a, b, size) == 0) {
        return true;
    }
    if (!tb_dtype_is_float(dtype)) {
        return false;
    }
    tb_cast(&x[0], TB_FLOAT64, a, dtype, 1);
    tb_cast(&x[1], TB_FLOAT64, b, dtype, 1);
    if (dtype == TB_FLOAT64) {
        memcpy(&x[0], a, 8);
        memcpy(&x[1], b, 8);
    }
    return isnan(x[0]) && isnan(x[1]);
}

static void fold_once(tb_cuda_worker *worker, uint64_t *random, uint64_t device, uint32_t dtype,
                      uint32_t op) {
    enum { MOST = 700 };
    static uint8_t source[ARENA], packed[MOST * 8], acc[MOST * 8], expected[MOST * 8], got[MOST * 8];
    uint32_t size = tb_dtype_size(dtype);
    uint32_t acc_size = tb_accumulator_size(dtype);
    box folded = random_box(random, MOST);
    int64_t count = folded.elements;
    int contributions = (int)random_between(random, 1, 4);
    uint64_t divisor = op == TB_PARTIAL_AVG ? (uint64_t)random_between(random, 2, 5) : 1;
    int64_t acc_words[] = {0, 0, count * acc_size};
    tb_error err;
    for (int c = 0; c < contributions; c++) {
        int64_t words[20];
        int64_t span;
        do {
            span = describe(random, &folded, size, words);
        } while (span > ARENA - 64);
        fill(random, source, dtype);
        device_write(worker, device, source, ARENA);
        tb_cuda_moves moves = {0};
        tb_cuda_ask ask = {.destination = {device + ARENA, acc_words, dtype},
                           .source = {device, words, dtype},
                           .fold = true,
                           .first = c == 0,
                           .last = c == contributions - 1,
                           .partial_op = op,
                           .divide_by = divisor};
        CHECK(tb_cuda_moves_add(&moves, &ask, &err) == TB_OK, "%s", err.message);
        make(worker, &moves, 1);
        tb_cursor cursor;
        tb_cursor_start(&cursor, source, words);
        tb_cursor_pack(&cursor, dtype, packed, dtype, (uint64_t)count);
        CHECK(tb_reduce(acc, packed, (uint64_t)count, dtype, op, c == 0, &err) == TB_OK, "%s", err.message);
    }
    CHECK(tb_reduce_finish(expected, acc, (uint64_t)count, dtype, divisor, &err) == TB_OK, "%s", err.message);
    device_read(worker, device + ARENA, got, (uint64_t)count * acc_size);
    for (int64_t i = 0; i < count; i++) {
        CHECK(same_number(expected + i * size, got + i * acc_size, dtype),
              "type %u, operator %u, element %lld of %d", dtype, op, (long long)i, contributions);
    }
}

static void folds_all(tb_cuda_worker *worker) {
    uint64_t random = 5;
    uint64_t device = device_allocate(worker, 2 * ARENA);
    for (uint32_t dtype = 0; dtype < TB_DTYPE_COUNT; dtype++) {
        for (uint32_t op = 0; op < TB_PARTIAL_COUNT; op++) {
            for (int i = 0; i < 6 && (op != TB_PARTIAL_AVG || tb_dtype_is_float(dtype)); i++) {
                fold_once(worker, &random, device, dtype, op);
            }
        }
    }
    device_free(worker, device);
}

int main(void) {
    use_cuda_double();
    tb_cuda_worker *worker = open_double();
    divides();
    moves_all(worker);
    moves_unlike(worker);
    moves_ranges(worker);
    moves_rows(worker);
    folds_all(worker);
    close_double(worker);
    return 0;
}
