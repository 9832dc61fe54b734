/* What the parts of tb_flow share: see flow.h. */
#ifndef TB_FLOW_PARTS_H
#define TB_FLOW_PARTS_H

#include "flow/flow.h"

static inline uint64_t tb_least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline const tb_chunk *tb_flow_chunk(const tb_flow *flow) {
    return &flow->places->program->chunks[flow->chunk];
}

/* The piece that the chunk is folded into. */
static inline const tb_piece *tb_flow_piece(const tb_flow *flow) {
    return &flow->places->program->pieces[tb_flow_chunk(flow)->destination - TB_PIECE_BIT];
}

/* A cursor at the first element of one end of a chunk. */
void tb_flow_start_end(tb_cursor *cursor, const tb_places *places, const tb_chunk *chunk, bool destination);
/* Counts bytes of the chunk as passed, and goes on to the next one if it is at its end. */
void tb_flow_pass(tb_flow *flow, uint64_t bytes);
/* The place where the next elements are folded, and a note that they were. */
uint8_t *tb_flow_fold_at(const tb_flow *flow, const tb_piece *piece);
void tb_flow_folded(tb_flow *flow, const tb_piece *piece, uint64_t count);

#endif
