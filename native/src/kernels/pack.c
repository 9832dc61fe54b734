/* Strided elements into rows and out of them. No lock is needed. */
#include <string.h>

#include "kernels/copy.h"
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "kernels/reduce.h"
#include "kernels/cursor_span.h"
#include "kernels/cast.h"
#include "kernels/pack.h"

/* Elements of the buffer through which short runs go: two of them stay in a first-level cache. */
enum { TILE_ELEMENTS = 1024, TILE_BYTES = TILE_ELEMENTS * 8 };
/* From this many bytes a run is handled where it lies; shorter ones are gathered first. */
enum { DIRECT_RUN_BYTES = 512 };

static void pack_bytes(tb_cursor *from, uint8_t *wire, int64_t bytes) {
    while (bytes > 0) {
        tb_span next = tb_cursor_take(from, bytes);
        int64_t taken = next.rows * next.run;
        tb_copy_rows(wire, next.run, next.at, next.stride, next.rows, next.run);
        wire += taken;
        bytes -= taken;
    }
}

static void write_rows(const tb_cursor *to, tb_span span, const uint8_t *from, int64_t from_stride) {
    if (to->cold) {
        tb_stream_rows(span.at, span.stride, from, from_stride, span.rows, span.run);
    } else {
        tb_copy_rows(span.at, span.stride, from, from_stride, span.rows, span.run);
    }
}

static void unpack_bytes(tb_cursor *to, const uint8_t *wire, int64_t bytes) {
    while (bytes > 0) {
        tb_span next = tb_cursor_take(to, bytes);
        int64_t taken = next.rows * next.run;
        write_rows(to, next, wire, next.run);
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
            tb_span next = tb_cursor_take_of_run(from, (int64_t)count * from_size);
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

/*
 * Casts a tile while the page after it is fetched, which the processor does not do by itself: it looks ahead
 * within a page only. What is not there is not fetched.
 */
static void cast_ahead(uint8_t *tile, uint32_t to_dtype, const uint8_t *in, uint32_t from_dtype,
                       int64_t count) {
    enum { STEP = 256, LINE = 64, PAGE = 4096 };
    int64_t to_size = tb_dtype_size(to_dtype);
    int64_t from_size = tb_dtype_size(from_dtype);
    for (int64_t at = 0; at < count; at += STEP) {
        int64_t elements = count - at < STEP ? count - at : STEP;
        for (int64_t line = 0; line < elements * from_size; line += LINE) {
            __builtin_prefetch(in + at * from_size + PAGE + line);
        }
        tb_cast(tile + at * to_size, to_dtype, in + at * from_size, from_dtype, (uint64_t)elements);
    }
}

/*
 * What is written past the cache passes through the tile too: whole lines are wanted, and casts write smaller
 * parts.
 */
static void unpack_cast(tb_cursor *to, uint32_t to_dtype, const uint8_t *in, uint32_t wire_dtype,
                        uint64_t count) {
    int64_t to_size = tb_dtype_size(to_dtype);
    int64_t wire_size = tb_dtype_size(wire_dtype);
    bool direct = to->run_bytes >= DIRECT_RUN_BYTES && !to->cold;
    while (count > 0) {
        int64_t elements;
        if (direct) {
            tb_span next = tb_cursor_take_of_run(to, (int64_t)count * to_size);
            elements = next.run / to_size;
            tb_cast(next.at, to_dtype, in, wire_dtype, (uint64_t)elements);
        } else {
            uint8_t tile[TILE_BYTES];
            elements = tile_of(count);
            cast_ahead(tile, to_dtype, in, wire_dtype, elements);
            unpack_bytes(to, tile, elements * to_size);
        }
        in += elements * wire_size;
        count -= (uint64_t)elements;
    }
}

static void unpack(tb_cursor *to, uint32_t to_dtype, const uint8_t *wire, uint32_t wire_dtype,
                   uint64_t count) {
    if (to_dtype == wire_dtype) {
        unpack_bytes(to, wire, (int64_t)count * tb_dtype_size(to_dtype));
    } else {
        unpack_cast(to, to_dtype, wire, wire_dtype, count);
    }
}

void tb_cursor_unpack(tb_cursor *to, uint32_t to_dtype, const void *wire, uint32_t wire_dtype,
                      uint64_t count) {
    unpack(to, to_dtype, wire, wire_dtype, count);
    if (to->cold) {
        tb_stream_end();
    }
}

/* Rows that lie evenly on both sides: whole runs of the same length, or a part of one run. */
static int64_t move_rows(tb_cursor *to, tb_cursor *from, int64_t bytes) {
    bool whole =
        to->run_bytes == from->run_bytes && to->in_run == 0 && from->in_run == 0 && bytes >= to->run_bytes;
    if (!whole) {
        int64_t from_rest = from->run_bytes - from->in_run;
        tb_span part = tb_cursor_take_of_run(to, bytes < from_rest ? bytes : from_rest);
        write_rows(to, part, from->run_start + from->in_run, 0);
        tb_cursor_advance(from, (uint64_t)part.run);
        return part.run;
    }
    tb_cursor ahead = *from;
    tb_span source = tb_cursor_take(&ahead, bytes);
    tb_span target = tb_cursor_take(to, source.rows * source.run);
    write_rows(to, target, source.at, source.stride);
    tb_cursor_advance(from, (uint64_t)(target.rows * target.run));
    return target.rows * target.run;
}

/* Without a buffer between the two. */
static void move_bytes(tb_cursor *to, tb_cursor *from, int64_t bytes) {
    while (bytes > 0) {
        bytes -= move_rows(to, from, bytes);
    }
}

void tb_cursor_move(tb_cursor *to, uint32_t to_dtype, tb_cursor *from, uint32_t from_dtype, uint64_t count) {
    int64_t shorter = to->run_bytes < from->run_bytes ? to->run_bytes : from->run_bytes;
    bool even = to->run_bytes == from->run_bytes && to->in_run == 0 && from->in_run == 0;
    if (to_dtype == from_dtype && (even || shorter >= DIRECT_RUN_BYTES)) {
        move_bytes(to, from, (int64_t)count * tb_dtype_size(to_dtype));
        count = 0;
    } else if (from->dims == 0) {
        unpack(to, to_dtype, from->run_start + from->in_run, from_dtype, count);
        tb_cursor_advance(from, count * tb_dtype_size(from_dtype));
        count = 0;
    } else if (to->dims == 0 && !to->cold) {
        tb_cursor_pack(from, from_dtype, to->run_start + to->in_run, to_dtype, count);
        tb_cursor_advance(to, count * tb_dtype_size(to_dtype));
        count = 0;
    }
    while (count > 0) {
        uint8_t tile[TILE_BYTES];
        uint64_t elements = (uint64_t)tile_of(count);
        tb_cursor_pack(from, from_dtype, tile, to_dtype, elements);
        unpack(to, to_dtype, tile, to_dtype, elements);
        count -= elements;
    }
    if (to->cold) {
        tb_stream_end();
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
            tb_span next = tb_cursor_take_of_run(from, (int64_t)count * size);
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
