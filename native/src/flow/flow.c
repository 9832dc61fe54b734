/*
 * A bucket's payload as a stream of bytes. Used by one thread at a time, which was counted before; no lock is
 * needed.
 */
#include <string.h>

#include "flow/flow_parts.h"
#include "kernels/reduce.h"
#include "kernels/dtype.h"
#include "kernels/pack.h"

#define PADDING 16u

/*
 * From this many bytes a run is worth an iovec of its own (measured: docs/adr/0001-streaming.md). Sending, a
 * shorter one costs the kernel more than a copy within the cache. Receiving, what the kernel has copied to a
 * buffer that stays in the cache is moved on at the speed of vector code, which it does not reach in tensor
 * memory itself.
 */
enum { SEND_RUN_BYTES = 512, RECEIVE_RUN_BYTES = 64 * 1024 };

void tb_flow_start_end(tb_cursor *cursor, const tb_places *places, const tb_chunk *chunk, bool destination) {
    uint32_t where = destination ? chunk->destination : chunk->source;
    uint32_t dtype = destination ? chunk->destination_dtype : chunk->source_dtype;
    if (where >= TB_PIECE_BIT) {
        tb_cursor_start_row(cursor, places->pool + places->piece_at[where - TB_PIECE_BIT],
                            chunk->elements * tb_dtype_size(dtype));
        return;
    }
    uint32_t descriptor = destination ? chunk->destination_descriptor : chunk->source_descriptor;
    tb_cursor_start(cursor, (void *)(uintptr_t)places->bindings[where].address,
                    places->program->words + descriptor);
}

/* A chunk that lies in one row is sent from there however short it is: that takes no staging. */
static bool worth_runs(const tb_cursor *cursor, bool receiving) {
    return receiving ? cursor->run_bytes >= RECEIVE_RUN_BYTES
                     : cursor->run_bytes >= SEND_RUN_BYTES || cursor->run_bytes == cursor->left;
}

static uint8_t mode_of(const tb_flow *flow, const tb_chunk *chunk) {
    uint8_t memory = flow->receiving ? chunk->destination_dtype : chunk->source_dtype;
    if (!flow->receiving || chunk->operation == TB_OP_COPY) {
        return memory == chunk->wire_dtype && worth_runs(&flow->cursor, flow->receiving) ? TB_FLOW_RUNS
                                                                                         : TB_FLOW_ELEMENTS;
    }
    /* What sets an accumulator of its own type is a copy, unless it is all there is to it. */
    bool sets = chunk->fold_position == 0 && tb_flow_piece(flow)->contributions > 1;
    bool same = tb_accumulator_size(chunk->wire_dtype) == tb_dtype_size(chunk->wire_dtype);
    return sets && same && worth_runs(&flow->cursor, true) ? TB_FLOW_RUNS : TB_FLOW_FOLD;
}

static void start_chunk(tb_flow *flow) {
    const tb_chunk *chunk = tb_flow_chunk(flow);
    tb_flow_start_end(&flow->cursor, flow->places, chunk, flow->receiving);
    flow->chunk_left = tb_chunk_wire_bytes(chunk);
    flow->item = (uint8_t)tb_dtype_size(chunk->wire_dtype);
    flow->carried = 0;
    flow->folded = 0;
    flow->mode = mode_of(flow, chunk);
    if (flow->receiving && chunk->operation == TB_OP_REDUCE) {
        flow->accumulator = flow->cursor.base;
    }
}

void tb_flow_start(tb_flow *flow, const tb_places *places, uint32_t bucket, bool receiving) {
    const tb_bucket *row = &places->program->buckets[bucket];
    flow->places = places;
    flow->bucket = bucket;
    flow->chunk = row->first_chunk;
    flow->padding = 0;
    flow->receiving = receiving;
    flow->left = row->bytes;
    start_chunk(flow);
}

void tb_flow_start_row(tb_flow *flow, uint8_t *at, uint64_t bytes) {
    memset(flow, 0, sizeof *flow);
    flow->mode = TB_FLOW_RUNS;
    flow->item = 1;
    flow->left = bytes;
    flow->chunk_left = bytes;
    tb_cursor_start_row(&flow->cursor, at, bytes);
}

void tb_flow_pass(tb_flow *flow, uint64_t bytes) {
    flow->left -= bytes;
    flow->chunk_left -= bytes;
    if (flow->chunk_left == 0 && flow->left > 0) {
        uint64_t chunk_bytes = tb_chunk_wire_bytes(tb_flow_chunk(flow));
        flow->padding = (uint32_t)(-chunk_bytes & (PADDING - 1));
        flow->chunk++;
        start_chunk(flow);
    }
}

/* ---- sending ------------------------------------------------------------------------------------------- */

bool tb_gather_has_room(const tb_gather *gather, uint64_t bytes) {
    return gather->count + 1 < gather->max && gather->size - gather->used >= bytes;
}

/* The next `count` bytes of the bounce, after the first `skip`, are to be sent. */
static void add_bounce(tb_gather *gather, uint64_t count, uint64_t skip) {
    uint8_t *at = gather->bounce + gather->used + skip;
    struct iovec *last = gather->count > 0 ? &gather->iov[gather->count - 1] : NULL;
    if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == at) {
        last->iov_len += count - skip;
    } else {
        gather->iov[gather->count++] = (struct iovec){at, count - skip};
    }
    gather->used += count;
    gather->bytes += count - skip;
}

void tb_gather_copy(tb_gather *gather, const void *bytes, uint64_t count) {
    memcpy(gather->bounce + gather->used, bytes, count);
    add_bounce(gather, count, 0);
}

static uint64_t gather_runs(tb_flow *flow, tb_gather *gather) {
    uint64_t bytes;
    gather->count += tb_cursor_iov(&flow->cursor, gather->iov + gather->count, gather->max - gather->count,
                                   tb_least(flow->chunk_left, gather->limit - gather->bytes), &bytes);
    gather->bytes += bytes;
    tb_cursor_advance(&flow->cursor, bytes);
    return bytes;
}

/* If a part of an element has been sent already, the element is packed again and that part left out. */
static uint64_t gather_elements(tb_flow *flow, tb_gather *gather) {
    const tb_chunk *chunk = tb_flow_chunk(flow);
    uint64_t item = flow->item;
    uint64_t skip = -flow->chunk_left & (item - 1);
    uint64_t room = tb_least(gather->size - gather->used, gather->may_pack);
    uint64_t elements = tb_least((flow->chunk_left + skip) / item, room / item);
    if (elements == 0 || gather->count == gather->max) {
        return 0;
    }
    tb_cursor_pack(&flow->cursor, chunk->source_dtype, gather->bounce + gather->used, chunk->wire_dtype,
                   elements);
    add_bounce(gather, elements * item, skip);
    gather->may_pack -= elements * item;
    return elements * item - skip;
}

uint64_t tb_flow_gather(tb_flow *flow, tb_gather *gather) {
    static const uint8_t zeros[PADDING];
    uint64_t begin = gather->bytes;
    while (flow->left > 0) {
        if (flow->padding > 0) {
            if (!tb_gather_has_room(gather, flow->padding)) {
                break;
            }
            tb_gather_copy(gather, zeros, flow->padding);
            flow->left -= flow->padding;
            flow->padding = 0;
        }
        if (gather->count == gather->max || gather->bytes >= gather->limit) {
            break;
        }
        uint64_t bytes =
            flow->mode == TB_FLOW_RUNS ? gather_runs(flow, gather) : gather_elements(flow, gather);
        if (bytes == 0) {
            break;
        }
        tb_flow_pass(flow, bytes);
    }
    return gather->bytes - begin;
}

/* ---- receiving ----------------------------------------------------------------------------------------- */

int tb_flow_scatter(tb_flow *flow, struct iovec *iov, int max, uint8_t *sink, uint64_t max_bytes,
                    uint64_t *bytes) {
    int count = 0;
    *bytes = 0;
    while (flow->left > 0 && flow->mode == TB_FLOW_RUNS && count + 1 < max && *bytes < max_bytes) {
        if (flow->padding > 0) {
            iov[count++] = (struct iovec){sink, flow->padding};
            flow->left -= flow->padding;
            *bytes += flow->padding;
            flow->padding = 0;
        }
        uint64_t runs;
        count += tb_cursor_iov(&flow->cursor, iov + count, max - count,
                               tb_least(flow->chunk_left, max_bytes - tb_least(*bytes, max_bytes)), &runs);
        tb_cursor_advance(&flow->cursor, runs);
        *bytes += runs;
        tb_flow_pass(flow, runs);
    }
    return count;
}

static void put_runs(tb_flow *flow, const uint8_t *bytes, uint64_t count) {
    while (count > 0) {
        struct iovec run;
        uint64_t length;
        tb_cursor_iov(&flow->cursor, &run, 1, count, &length);
        memcpy(run.iov_base, bytes, length);
        tb_cursor_advance(&flow->cursor, length);
        bytes += length;
        count -= length;
    }
}

/*
 * The last contribution is in: divide and round in place, then move the narrower elements together. They
 * never reach what is not yet folded, since n narrow elements take no more room than n accumulators.
 */
static void finish_elements(tb_flow *flow, const tb_piece *piece, uint64_t count) {
    uint64_t size = tb_dtype_size(piece->dtype);
    uint64_t acc_size = tb_accumulator_size(piece->dtype);
    if (piece->divisor == 1 && size == acc_size) {
        return;
    }
    uint8_t *at = flow->accumulator + flow->folded * acc_size;
    tb_reduce_finish(at, at, count, piece->dtype, piece->divisor, NULL);
    if (size != acc_size) {
        memmove(flow->accumulator + flow->folded * size, at, count * size);
    }
}

uint8_t *tb_flow_fold_at(const tb_flow *flow, const tb_piece *piece) {
    return flow->accumulator + flow->folded * tb_accumulator_size(piece->dtype);
}

void tb_flow_folded(tb_flow *flow, const tb_piece *piece, uint64_t count) {
    if (tb_flow_chunk(flow)->fold_position == piece->contributions - 1) {
        finish_elements(flow, piece, count);
    }
    flow->folded += count;
}

static void put_elements(tb_flow *flow, const uint8_t *bytes, uint64_t count) {
    const tb_chunk *chunk = tb_flow_chunk(flow);
    if (flow->mode == TB_FLOW_ELEMENTS) {
        tb_cursor_unpack(&flow->cursor, chunk->destination_dtype, bytes, chunk->wire_dtype, count);
        return;
    }
    const tb_piece *piece = tb_flow_piece(flow);
    tb_fold(tb_flow_fold_at(flow, piece), bytes, count, piece->dtype, piece->op, chunk->fold_position == 0);
    tb_flow_folded(flow, piece, count);
}

/* Bytes of the chunk: whole elements at once, the parts of one by way of the carry. */
static void put_items(tb_flow *flow, const uint8_t *bytes, uint64_t count) {
    if (flow->carried > 0) {
        uint64_t part = tb_least(flow->item - flow->carried, count);
        memcpy(flow->carry + flow->carried, bytes, part);
        flow->carried = (uint8_t)(flow->carried + part);
        bytes += part;
        count -= part;
        if (flow->carried < flow->item) {
            return;
        }
        put_elements(flow, flow->carry, 1);
        flow->carried = 0;
    }
    uint64_t elements = count / flow->item;
    if (elements > 0) {
        put_elements(flow, bytes, elements);
    }
    flow->carried = (uint8_t)(count - elements * flow->item);
    memcpy(flow->carry, bytes + elements * flow->item, flow->carried);
}

void tb_flow_put(tb_flow *flow, const uint8_t *bytes, uint64_t count) {
    while (count > 0) {
        uint64_t padding = tb_least(flow->padding, count);
        flow->padding -= (uint32_t)padding;
        flow->left -= padding;
        uint64_t part = tb_least(flow->chunk_left, count - padding);
        bytes += padding;
        if (part > 0) {
            if (flow->mode == TB_FLOW_RUNS) {
                put_runs(flow, bytes, part);
            } else {
                put_items(flow, bytes, part);
            }
            tb_flow_pass(flow, part);
        }
        bytes += part;
        count -= padding + part;
    }
}

void tb_flow_skip(tb_flow *flow, uint64_t count) {
    while (count > 0) {
        uint64_t padding = tb_least(flow->padding, count);
        flow->padding -= (uint32_t)padding;
        flow->left -= padding;
        uint64_t part = tb_least(flow->chunk_left, count - padding);
        if (part > 0 && flow->mode == TB_FLOW_RUNS) {
            tb_cursor_advance(&flow->cursor, part);
        } else if (part > 0) {
            uint64_t item = flow->item;
            uint64_t elements =
                (flow->chunk_left + item - 1) / item - (flow->chunk_left - part + item - 1) / item;
            tb_cursor_advance(&flow->cursor, elements * tb_dtype_size(tb_flow_chunk(flow)->source_dtype));
        }
        if (part > 0) {
            tb_flow_pass(flow, part);
        }
        count -= padding + part;
    }
}

uint32_t tb_flow_crc(tb_flow *flow, uint64_t count, uint32_t crc) {
    while (count > 0) {
        uint8_t bounce[4096];
        struct iovec iov[16];
        tb_gather gather = {.iov = iov,
                            .max = 16,
                            .bounce = bounce,
                            .size = sizeof bounce,
                            .may_pack = sizeof bounce,
                            .limit = count};
        tb_flow ahead = *flow;
        uint64_t bytes = tb_least(tb_flow_gather(&ahead, &gather), count);
        tb_flow_skip(flow, bytes);
        count -= bytes;
        for (int i = 0; i < gather.count && bytes > 0; i++) {
            uint64_t length = tb_least(iov[i].iov_len, bytes);
            crc = tb_crc32c(crc, iov[i].iov_base, length);
            bytes -= length;
        }
    }
    return crc;
}
