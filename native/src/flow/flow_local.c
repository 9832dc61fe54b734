/* Buckets whose two ends this rank reaches: no wire, and no buffer between. No lock is needed. */
#include <string.h>

#include "flow/flow_parts.h"
#include "kernels/dtype.h"
#include "kernels/pack.h"

void tb_flow_start_local(tb_flow *flow, tb_cursor *source, const tb_places *places, uint32_t bucket) {
    tb_flow_start(flow, places, bucket, true);
    tb_flow_start_end(source, places, tb_flow_chunk(flow), false);
}

static bool same_memory(const tb_cursor *a, const tb_cursor *b) {
    return a->base == b->base && a->dims == b->dims && a->run_bytes == b->run_bytes
           && (a->dims == 0 || memcmp(a->loops, b->loops, (size_t)a->dims * 2 * sizeof a->loops[0]) == 0);
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
    tb_cursor_move(&flow->cursor, chunk->destination_dtype, source, chunk->source_dtype, count);
}

bool tb_flow_move(tb_flow *flow, tb_cursor *source, uint64_t elements) {
    move_elements(flow, source, elements);
    return tb_flow_moved(flow, elements);
}

bool tb_flow_moved(tb_flow *flow, uint64_t elements) {
    uint32_t chunk = flow->chunk;
    tb_flow_pass(flow, elements * flow->item);
    if (flow->chunk == chunk) {
        return false;
    }
    flow->left -= flow->padding; /* what lies on no wire has no padding */
    flow->padding = 0;
    return true;
}

bool tb_flow_local(tb_flow *flow, tb_cursor *source, uint64_t limit) {
    uint64_t moved = 0;
    while (flow->left > 0 && moved < limit) {
        uint64_t elements = tb_least(flow->chunk_left / flow->item, limit / flow->item);
        if (tb_flow_move(flow, source, elements)) {
            tb_flow_start_end(source, flow->places, tb_flow_chunk(flow), false);
        }
        moved += elements * flow->item;
    }
    return flow->left > 0;
}
