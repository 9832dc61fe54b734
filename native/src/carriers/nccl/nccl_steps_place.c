/*
 * The places of everything that a transfer's steps use, filled in once its memory is there: the addresses of what is
 * sent and received, and the moves that pack, unpack and fold. No lock is needed.
 */
#include <stdlib.h>

#include "base/error.h"
#include "carriers/nccl/nccl_steps_parts.h"
#include "kernels/dtype.h"

typedef struct placer {
    const tb_program *program;
    const tb_binding *bindings;
    tb_nccl_steps *plan;
    const uint64_t *pieces; /* addresses */
    tb_error *err;
} placer;

/* A descriptor of one row, or of what was folded: each element at the beginning of its accumulator. */
typedef struct packed {
    int64_t words[5];
} packed;

static packed one_row(uint64_t bytes) {
    return (packed){{0, 0, (int64_t)bytes}};
}

static packed of_piece(const tb_chunk *chunk) {
    int64_t size = tb_dtype_size(chunk->source_dtype);
    int64_t step = tb_accumulator_size(chunk->source_dtype);
    if (size == step) {
        return one_row(chunk->elements * (uint64_t)size);
    }
    return (packed){{0, 1, (int64_t)chunk->elements, step, size}};
}

/* The end of a chunk that lies in a tensor or in a piece. */
static tb_cuda_place place_of(const placer *at, const tb_chunk *chunk, bool destination, packed *row) {
    uint32_t where = destination ? chunk->destination : chunk->source;
    uint32_t dtype = destination ? chunk->destination_dtype : chunk->source_dtype;
    if (where >= TB_PIECE_BIT) {
        *row = destination ? one_row(chunk->elements * tb_accumulator_size(dtype)) : of_piece(chunk);
        return (tb_cuda_place){at->pieces[where - TB_PIECE_BIT], row->words, dtype};
    }
    uint32_t descriptor = destination ? chunk->destination_descriptor : chunk->source_descriptor;
    return (tb_cuda_place){at->bindings[where].address, at->program->words + descriptor, dtype};
}

static int32_t add_fold(const placer *at, const tb_chunk *chunk, tb_cuda_place source, uint32_t group) {
    const tb_piece *piece = &at->program->pieces[chunk->destination - TB_PIECE_BIT];
    packed row = one_row(chunk->elements * tb_accumulator_size(piece->dtype));
    tb_cuda_ask ask = {
        .group = at->plan->mixed ? group : group + chunk->fold_position,
        .destination = {at->pieces[chunk->destination - TB_PIECE_BIT], row.words, piece->dtype},
        .source = source,
        .fold = true,
        .first = chunk->fold_position == 0,
        .last = chunk->fold_position == piece->contributions - 1,
        .partial_op = piece->op,
        .divide_by = piece->divisor,
    };
    return tb_cuda_moves_add(&at->plan->moves, &ask, at->err);
}

/* The chunks of a bucket between memory here and its payload, which begins at `payload`. */
static int32_t add_payload(const placer *at, uint32_t bucket, uint64_t payload, bool sends, uint32_t group) {
    const tb_bucket *row = &at->program->buckets[bucket];
    int32_t code = TB_OK;
    for (uint32_t c = row->first_chunk; c < row->first_chunk + row->chunk_count && code == TB_OK; c++) {
        const tb_chunk *chunk = &at->program->chunks[c];
        packed wire = one_row(tb_chunk_wire_bytes(chunk));
        packed own;
        tb_cuda_place there = {payload, wire.words, chunk->wire_dtype};
        if (chunk->operation == TB_OP_REDUCE && !sends) {
            code = add_fold(at, chunk, there, group);
        } else {
            tb_cuda_place here = place_of(at, chunk, !sends, &own);
            tb_cuda_ask ask = {
                .group = group, .destination = sends ? there : here, .source = sends ? here : there};
            code = tb_cuda_moves_add(&at->plan->moves, &ask, at->err);
        }
        payload += tb_aligned(tb_chunk_wire_bytes(chunk), TB_NCCL_STEPS_PADDING);
    }
    return code;
}

static int32_t add_own(const placer *at, uint32_t bucket, uint32_t group) {
    const tb_bucket *row = &at->program->buckets[bucket];
    int32_t code = TB_OK;
    for (uint32_t c = row->first_chunk; c < row->first_chunk + row->chunk_count && code == TB_OK; c++) {
        const tb_chunk *chunk = &at->program->chunks[c];
        packed from;
        packed to;
        tb_cuda_place source = place_of(at, chunk, false, &from);
        if (chunk->operation == TB_OP_REDUCE) {
            code = add_fold(at, chunk, source, group);
            continue;
        }
        tb_cuda_ask ask = {.group = group, .destination = place_of(at, chunk, true, &to), .source = source};
        bool nothing = ask.destination.address == source.address && ask.destination.dtype == source.dtype
                       && ask.destination.descriptor[0] == source.descriptor[0];
        code = nothing ? TB_OK : tb_cuda_moves_add(&at->plan->moves, &ask, at->err);
    }
    return code;
}

static uint64_t direct_address(const placer *at, uint32_t bucket, bool sends) {
    packed row;
    tb_cuda_place place = place_of(at, tb_only_chunk(at->program, bucket), !sends, &row);
    return place.address + (uint64_t)place.descriptor[0];
}

static int32_t place_step(const placer *at, uint32_t index) {
    tb_nccl_steps *plan = at->plan;
    const tb_nccl_step *step = &plan->steps[index];
    int32_t code = TB_OK;
    for (uint32_t i = step->first_op; i < step->first_op + step->op_count && code == TB_OK; i++) {
        tb_nccl_op *op = &plan->ops[i];
        if (tb_bucket_folds(at->program, op->bucket)) {
            op->address += plan->memory + plan->contributions_at;
        } else if (tb_lies_ready(at->program, op->bucket, op->sends)) {
            op->address = direct_address(at, op->bucket, op->sends);
        } else {
            op->address += plan->memory + plan->staging_at + plan->stage_at[index % plan->depth][op->sends];
            code = add_payload(at, op->bucket, op->address, op->sends, op->sends ? step->pack : step->unpack);
        }
    }
    for (uint32_t i = step->first_local; i < step->first_local + step->local_count && code == TB_OK; i++) {
        code = add_own(at, plan->locals[i], step->unpack);
    }
    return code;
}

/*
 * Contributions of others, out of the memory that they came into: with the step that folds, or each by itself if
 * others fold.
 */
static int32_t place_folds(const placer *at) {
    const tb_nccl_steps *plan = at->plan;
    int32_t code = TB_OK;
    for (uint32_t i = 0; i < plan->op_count && code == TB_OK; i++) {
        const tb_nccl_op *op = &plan->ops[i];
        if (!tb_bucket_folds(at->program, op->bucket)) {
            continue;
        }
        uint32_t group = plan->mixed ? plan->fold_of[op->bucket] : plan->steps[plan->fold_step].unpack;
        code = add_payload(at, op->bucket, op->address, false, group);
    }
    return code;
}

static int32_t place(placer *at, uint64_t memory) {
    tb_nccl_steps *plan = at->plan;
    uint32_t groups = plan->moves.group_count;
    int32_t code = TB_OK;
    plan->memory = memory;
    for (uint32_t step = 0; step < plan->step_count && code == TB_OK; step++) {
        code = place_step(at, step);
    }
    if (code == TB_OK) {
        code = place_folds(at);
    }
    return code == TB_OK ? tb_cuda_moves_sort(&plan->moves, groups, at->err) : code;
}

int32_t tb_nccl_steps_place(const tb_program *program, const tb_binding *bindings, const tb_pool *pool, uint64_t memory,
                            tb_nccl_steps *plan, tb_error *err) {
    uint32_t count = program->header->piece_count;
    uint64_t *pieces = calloc((size_t)count + 1, sizeof *pieces);
    if (pieces == NULL) {
        return tb_nccl_steps_no_memory(err);
    }
    uint64_t next = memory + plan->pool_at;
    for (uint32_t piece = 0; piece < count; piece++) {
        pieces[piece] = plan->mixed ? (uint64_t)(uintptr_t)pool->memory + pool->fixed_at[piece] : next;
        next += tb_aligned(program->pieces[piece].pool_bytes, TB_NCCL_STEPS_ALIGNMENT);
    }
    placer at = {.program = program, .bindings = bindings, .plan = plan, .pieces = pieces, .err = err};
    int32_t code = place(&at, memory);
    free(pieces);
    return code;
}
