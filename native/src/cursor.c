#include "cursor.h"

#include <string.h>

#include "copy.h"
#include "dtype.h"
#include "reduce.h"

/* Elements of the buffer through which short runs are cast: two of them stay in a first-level cache. */
enum { TILE_ELEMENTS = 1024, TILE_BYTES = TILE_ELEMENTS * 8 };
/* From this many bytes a run is cast where it lies; shorter ones are gathered first. */
enum { DIRECT_RUN_BYTES = 512 };

/* Rows of one length: a part of a run, or whole runs of the innermost loop. */
typedef struct span {
    uint8_t *at;
    int64_t stride;
    int64_t rows;
    int64_t run;
} span;

void tb_cursor_start(tb_cursor *cursor, void *first_element, const int64_t *descriptor) {
    int64_t dims = descriptor[1];
    cursor->base = (uint8_t *)first_element + descriptor[0];
    cursor->run_start = cursor->base;
    cursor->run_bytes = descriptor[2 + 2 * dims];
    cursor->in_run = 0;
    cursor->left = cursor->run_bytes;
    cursor->dims = (int32_t)dims;
    cursor->loops = descriptor + 2;
    for (int64_t dim = 0; dim < dims; dim++) {
        cursor->left *= cursor->loops[2 * dim];
        cursor->index[dim] = 0;
    }
}

/* Goes on by whole runs. Past the last run every index is 0 again, and nothing is left. */
static void step_runs(const int64_t *loops, int32_t dims, int64_t *index, uint8_t **run_start, int64_t runs) {
    for (int32_t dim = dims - 1; dim >= 0 && runs > 0; dim--) {
        int64_t count = loops[2 * dim];
        int64_t stride = loops[2 * dim + 1];
        int64_t was = index[dim];
        int64_t now = was + runs;
        runs = 0;
        if (now >= count) {
            /* One carry is by far the most frequent, and a division is slow. */
            runs = now < 2 * count ? 1 : now / count;
            now -= runs * count;
        }
        index[dim] = now;
        *run_start += (now - was) * stride;
    }
}

void tb_cursor_advance(tb_cursor *cursor, uint64_t bytes) {
    int64_t in_run = cursor->in_run + (int64_t)bytes;
    cursor->left -= (int64_t)bytes;
    if (in_run >= cursor->run_bytes) {
        int64_t runs = in_run < 2 * cursor->run_bytes ? 1 : in_run / cursor->run_bytes;
        in_run -= runs * cursor->run_bytes;
        step_runs(cursor->loops, cursor->dims, cursor->index, &cursor->run_start, runs);
    }
    cursor->in_run = in_run;
}

int tb_cursor_iov(const tb_cursor *cursor, struct iovec *iov, int max, uint64_t max_bytes, uint64_t *bytes) {
    int64_t index[TB_MAX_DIMS];
    memcpy(index, cursor->index, (size_t)cursor->dims * sizeof index[0]);
    uint8_t *run_start = cursor->run_start;
    int64_t in_run = cursor->in_run;
    uint64_t want = (uint64_t)cursor->left < max_bytes ? (uint64_t)cursor->left : max_bytes;
    uint64_t given = 0;
    int entries = 0;
    while (entries < max && given < want) {
        uint64_t length = (uint64_t)(cursor->run_bytes - in_run);
        if (length > want - given) {
            length = want - given;
        }
        iov[entries].iov_base = run_start + in_run;
        iov[entries].iov_len = length;
        entries++;
        given += length;
        in_run = 0;
        step_runs(cursor->loops, cursor->dims, index, &run_start, 1);
    }
    *bytes = given;
    return entries;
}

/* Takes the next rows of at most that many bytes, and advances past them. */
static span take(tb_cursor *cursor, int64_t bytes) {
    int64_t run = cursor->run_bytes;
    if (cursor->in_run != 0 || bytes < run || cursor->dims == 0) {
        int64_t rest = run - cursor->in_run;
        span part = {cursor->run_start + cursor->in_run, 0, 1, rest < bytes ? rest : bytes};
        tb_cursor_advance(cursor, (uint64_t)part.run);
        return part;
    }
    int32_t inner = cursor->dims - 1;
    int64_t rows = cursor->loops[2 * inner] - cursor->index[inner];
    if (rows > bytes / run) {
        rows = bytes / run;
    }
    span whole = {cursor->run_start, cursor->loops[2 * inner + 1], rows, run};
    cursor->left -= rows * run;
    step_runs(cursor->loops, cursor->dims, cursor->index, &cursor->run_start, rows);
    return whole;
}

static void pack_bytes(tb_cursor *from, uint8_t *wire, int64_t bytes) {
    while (bytes > 0) {
        span next = take(from, bytes);
        int64_t taken = next.rows * next.run;
        tb_copy_rows(wire, next.run, next.at, next.stride, next.rows, next.run);
        wire += taken;
        bytes -= taken;
    }
}

static void unpack_bytes(tb_cursor *to, const uint8_t *wire, int64_t bytes) {
    while (bytes > 0) {
        span next = take(to, bytes);
        int64_t taken = next.rows * next.run;
        tb_copy_rows(next.at, next.stride, wire, next.run, next.rows, next.run);
        wire += taken;
        bytes -= taken;
    }
}

static int64_t tile_of(uint64_t count) {
    return count < TILE_ELEMENTS ? (int64_t)count : TILE_ELEMENTS;
}

void tb_cursor_pack(tb_cursor *from, uint32_t from_dtype, void *wire, uint32_t wire_dtype, uint64_t count) {
    int64_t from_size = tb_dtype_size(from_dtype);
    int64_t wire_size = tb_dtype_size(wire_dtype);
    uint8_t *out = wire;
    if (from_dtype == wire_dtype) {
        pack_bytes(from, out, (int64_t)count * from_size);
        return;
    }
    bool direct = from->run_bytes >= DIRECT_RUN_BYTES;
    while (count > 0) {
        int64_t elements;
        if (direct) {
            span next = take(from, from->run_bytes < (int64_t)count * from_size ? from->run_bytes
                                                                                : (int64_t)count * from_size);
            elements = next.run / from_size;
            tb_cast(out, wire_dtype, next.at, from_dtype, (uint64_t)elements);
        } else {
            uint8_t tile[TILE_BYTES];
            elements = tile_of(count);
            pack_bytes(from, tile, elements * from_size);
            tb_cast(out, wire_dtype, tile, from_dtype, (uint64_t)elements);
        }
        out += elements * wire_size;
        count -= (uint64_t)elements;
    }
}

void tb_cursor_unpack(tb_cursor *to, uint32_t to_dtype, const void *wire, uint32_t wire_dtype, uint64_t count) {
    int64_t to_size = tb_dtype_size(to_dtype);
    int64_t wire_size = tb_dtype_size(wire_dtype);
    const uint8_t *in = wire;
    if (to_dtype == wire_dtype) {
        unpack_bytes(to, in, (int64_t)count * to_size);
        return;
    }
    bool direct = to->run_bytes >= DIRECT_RUN_BYTES;
    while (count > 0) {
        int64_t elements;
        if (direct) {
            span next = take(to, to->run_bytes < (int64_t)count * to_size ? to->run_bytes
                                                                          : (int64_t)count * to_size);
            elements = next.run / to_size;
            tb_cast(next.at, to_dtype, in, wire_dtype, (uint64_t)elements);
        } else {
            uint8_t tile[TILE_BYTES];
            elements = tile_of(count);
            tb_cast(tile, to_dtype, in, wire_dtype, (uint64_t)elements);
            unpack_bytes(to, tile, elements * to_size);
        }
        in += elements * wire_size;
        count -= (uint64_t)elements;
    }
}

void tb_cursor_reduce(void *acc, tb_cursor *from, uint64_t count, uint32_t dtype, uint32_t partial_op,
                      uint32_t first) {
    int64_t size = tb_dtype_size(dtype);
    int64_t acc_size = tb_accumulator_size(dtype);
    uint8_t *into = acc;
    bool direct = from->run_bytes >= DIRECT_RUN_BYTES;
    while (count > 0) {
        int64_t elements;
        if (direct) {
            span next = take(from, from->run_bytes < (int64_t)count * size ? from->run_bytes
                                                                           : (int64_t)count * size);
            elements = next.run / size;
            tb_fold(into, next.at, (uint64_t)elements, dtype, partial_op, first);
        } else {
            uint8_t tile[TILE_BYTES];
            elements = tile_of(count);
            pack_bytes(from, tile, elements * size);
            tb_fold(into, tile, (uint64_t)elements, dtype, partial_op, first);
        }
        into += elements * acc_size;
        count -= (uint64_t)elements;
    }
}
