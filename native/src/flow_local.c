/* Buckets from this rank to itself: no wire, and no buffer between the two ends. */
#include <string.h>

#include "flow_parts.h"

static void start_local_chunk(tb_flow *flow, tb_cursor *source) {
    flow->padding = 0; /* what lies on no wire has no padding */
    tb_flow_start_end(source, flow->places, tb_flow_chunk(flow), false);
}

void tb_flow_start_local(tb_flow *flow, tb_cursor *source, const tb_places *places, uint32_t bucket) {
    tb_flow_start(flow, places, bucket, true);
    start_local_chunk(flow, source);
}

static bool same_memory(const tb_cursor *a, const tb_cursor *b) {
    return a->base == b->base && a->dims == b->dims && a->run_bytes == b->run_bytes
           && (a->dims == 0 || memcmp(a->loops, b->loops, (size_t)a->dims * 2 * sizeof a->loops[0]) == 0);
}

/* Copies elements without a buffer between: along the runs of the end that has the longer ones. */
static void copy_elements(tb_cursor *to, uint32_t to_dtype, tb_cursor *from, uint32_t from_dtype,
                          uint64_t count) {
    uint64_t to_size = tb_dtype_size(to_dtype);
    uint64_t from_size = tb_dtype_size(from_dtype);
    bool along_source = (uint64_t)from->run_bytes / from_size >= (uint64_t)to->run_bytes / to_size;
    while (count > 0) {
        struct iovec run;
        uint64_t bytes;
        uint64_t elements;
        if (along_source) {
            tb_cursor_iov(from, &run, 1, count * from_size, &bytes);
            elements = bytes / from_size;
            tb_cursor_advance(from, bytes);
            tb_cursor_unpack(to, to_dtype, run.iov_base, from_dtype, elements);
        } else {
            tb_cursor_iov(to, &run, 1, count * to_size, &bytes);
            elements = bytes / to_size;
            tb_cursor_advance(to, bytes);
            tb_cursor_pack(from, from_dtype, run.iov_base, to_dtype, elements);
        }
        count -= elements;
    }
}

static void move_elements(tb_flow *flow, tb_cursor *source, uint64_t count) {
    const tb_chunk *chunk = tb_flow_chunk(flow);
    if (chunk->operation == TB_OP_REDUCE) {
        const tb_piece *piece = tb_flow_piece(flow);
        tb_cursor_reduce(tb_flow_fold_at(flow, piece), source, count, piece->dtype, piece->op,
                         chunk->fold_position == 0);
        tb_flow_folded(flow, piece, count);
        return;
    }
    if (chunk->source_dtype == chunk->destination_dtype && same_memory(source, &flow->cursor)) {
        uint64_t bytes = count * tb_dtype_size(chunk->source_dtype);
        tb_cursor_advance(source, bytes);
        tb_cursor_advance(&flow->cursor, bytes);
        return;
    }
    copy_elements(&flow->cursor, chunk->destination_dtype, source, chunk->source_dtype, count);
}

bool tb_flow_local(tb_flow *flow, tb_cursor *source, uint64_t limit) {
    uint64_t moved = 0;
    while (flow->left > 0 && moved < limit) {
        uint64_t elements = tb_least(flow->chunk_left / flow->item, limit / flow->item);
        uint32_t chunk = flow->chunk;
        move_elements(flow, source, elements);
        moved += elements * flow->item;
        tb_flow_pass(flow, elements * flow->item);
        if (flow->chunk != chunk) {
            flow->left -= flow->padding;
            start_local_chunk(flow, source);
        }
    }
    return flow->left > 0;
}
