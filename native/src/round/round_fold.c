/*
 * Stage 0: contributions come in by the order of their folds, into a pool of pieces that is a ring.
 *
 * It cannot stop. Contributions are allowed in one total order, (first piece, fold position). Take the first one that
 * is not yet folded. If it is allowed, all before it in its fold are folded, so it is folded as it comes, or from its
 * slot; what comes waits for nothing, since contributions are read from source tensors. If it is not allowed, then
 * either its channel or the slots are full, of contributions that are later in the order, but those are allowed later:
 * a contradiction; or the pool is full, of pieces whose folds are complete, and whose readers send to peers that
 * granted them without a window and read without waiting, or copy here. So they go, and the pool has room:
 * tb_program_check_pool. A slot is kept for each contribution that is allowed to come, so that none ever waits in a
 * connection. Readers that move jointly send in their steps, which may be later than that of a piece with no room yet:
 * if there are such, the pool has a place for each piece, and what is brought jointly has memory of its own. The
 * session's lock is held, except when the places of pieces are fixed at prepare.
 */
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "round/round.h"
#include "flow/staging.h"
#include "round/round_fold.h"
#include "round/round_receive.h"
#include "round/select.h"
#include "round/invariants.h"

static uint32_t piece_of(const tb_program *program, const tb_bucket *bucket, uint32_t index) {
    return program->chunks[bucket->first_chunk + index].destination - TB_PIECE_BIT;
}

void tb_folds_reset(tb_transfer *transfer) {
    const tb_program *program = &transfer->program;
    tb_pool *pool = &transfer->pool;
    pool->placed = 0;
    pool->freed = 0;
    pool->head = 0;
    pool->tail = 0;
    for (uint32_t i = 0; i < program->header->piece_count; i++) {
        pool->readers[i] = program->pieces[i].readers;
    }
    transfer->next_fold = 0;
    transfer->folds_in_flight = 0;
    transfer->free_slot_count = program->slot_count;
    for (uint32_t i = 0; i < program->slot_count; i++) {
        transfer->free_slots[i] = i;
    }
    memset(transfer->slot_of, 0xff, program->header->bucket_count * sizeof *transfer->slot_of);
    transfer->staging.now = 0;
}

/* Finds the place of a piece that begins at `line` or later: it does not wrap around the end of the memory. */
static uint64_t fit(const tb_transfer *transfer, uint64_t line, uint64_t bytes) {
    uint64_t size = transfer->pool.ring;
    uint64_t at = line % size;
    return at + bytes > size ? line + (size - at) : line;
}

/* Places follow from the sizes alone; when a piece may take its own depends on what went before. */
void tb_folds_fix_places(tb_transfer *transfer) {
    const tb_program *program = &transfer->program;
    uint64_t line = 0;
    for (uint32_t f = 0; f < program->fold_count; f++) {
        const tb_bucket *bucket = &program->buckets[program->fold_order[f]];
        for (uint32_t i = 0; i < bucket->chunk_count && bucket->fold_after == TB_NONE; i++) {
            uint32_t piece = piece_of(program, bucket, i);
            uint64_t at = fit(transfer, line, program->pieces[piece].pool_bytes);
            transfer->pool.fixed_at[piece] = at % transfer->pool.ring;
            line = at + program->pieces[piece].pool_bytes;
        }
    }
}

/* Gives all pieces of a fold their places, or none. */
static bool place_pieces(tb_transfer *transfer, const tb_bucket *bucket) {
    const tb_program *program = &transfer->program;
    tb_pool *pool = &transfer->pool;
    uint64_t line = pool->head;
    for (uint32_t i = 0; i < bucket->chunk_count; i++) {
        uint64_t bytes = program->pieces[piece_of(program, bucket, i)].pool_bytes;
        line = fit(transfer, line, bytes) + bytes;
    }
    if (line - pool->tail > pool->ring) {
        return false;
    }
    for (uint32_t i = 0; i < bucket->chunk_count; i++) {
        uint32_t piece = piece_of(program, bucket, i);
        uint64_t bytes = program->pieces[piece].pool_bytes;
        uint64_t at = fit(transfer, pool->head, bytes);
        pool->piece_at[piece] = at % pool->ring;
        if (pool->shared_at != NULL) {
            __atomic_store_n(&pool->shared_at[piece], pool->piece_at[piece], __ATOMIC_RELAXED);
        }
        pool->piece_end[piece] = at + bytes;
        pool->head = at + bytes;
        pool->order[pool->placed++] = piece;
        tb_staging_add(&transfer->staging, bytes);
    }
    return true;
}

/* Gives a piece back, and with it the ring's tail as far as pieces are free. */
static void free_piece(tb_transfer *transfer, uint32_t piece) {
    tb_pool *pool = &transfer->pool;
    pool->readers[piece] = TB_NONE;
    tb_staging_remove(&transfer->staging, transfer->program.pieces[piece].pool_bytes);
    while (pool->freed < pool->placed && pool->readers[pool->order[pool->freed]] == TB_NONE) {
        pool->tail = pool->piece_end[pool->order[pool->freed++]];
    }
}

bool tb_folds_turn(const tb_transfer *transfer, uint32_t bucket) {
    uint32_t after = transfer->program.buckets[bucket].fold_after;
    return after == TB_NONE || transfer->buckets[after] == TB_BUCKET_DONE;
}

/* Allows the next contribution; false if it has to wait. */
static bool allow(tb_transfer *transfer, uint32_t bucket) {
    const tb_program *program = &transfer->program;
    const tb_bucket *row = &program->buckets[bucket];
    bool local = program->channels[row->channel].direction == TB_LOCAL;
    bool comes = (tb_way_of(transfer, row->channel) == TB_WAY_STREAM); /* and may have to wait in a slot */
    tb_channel_state *state = &transfer->channels[row->channel];
    bool full = state->in_flight == program->header->buckets_in_flight
                || transfer->folds_in_flight == program->slot_count;
    if ((comes && full) || (row->fold_after == TB_NONE && !place_pieces(transfer, row))) {
        return false;
    }
    bool here = local || transfer->buckets[bucket] == TB_BUCKET_READY;
    tb_bucket_become(transfer, bucket, local || !here ? TB_BUCKET_ALLOWED : TB_BUCKET_STAGED);
    if (here && tb_folds_turn(transfer, bucket)) {
        tb_bucket_become(transfer, bucket, TB_BUCKET_QUEUED);
        tb_round_offer(transfer, bucket);
    }
    if (!comes) {
        return true;
    }
    state->in_flight++;
    state->granted++;
    state->announce = true;
    transfer->folds_in_flight++;
    return true;
}

void tb_folds_allow(tb_transfer *transfer) {
    const tb_program *program = &transfer->program;
    uint32_t first = transfer->next_fold;
    while (transfer->next_fold < program->fold_count && allow(transfer, program->fold_order[transfer->next_fold])) {
        transfer->next_fold++;
    }
    for (uint32_t i = first; i < transfer->next_fold; i++) {
        uint32_t channel = program->buckets[program->fold_order[i]].channel;
        if (transfer->channels[channel].announce) {
            tb_round_announce(transfer, channel);
        }
    }
}

static void free_unread(tb_transfer *transfer, const tb_bucket *bucket) {
    for (uint32_t i = 0; i < bucket->chunk_count; i++) {
        uint32_t piece = piece_of(&transfer->program, bucket, i);
        if (transfer->pool.readers[piece] == 0) {
            free_piece(transfer, piece);
        }
    }
}

void tb_folds_done(tb_transfer *transfer, uint32_t bucket) {
    const tb_program *program = &transfer->program;
    const tb_bucket *row = &program->buckets[bucket];
    tb_round_bucket_done(transfer, bucket);
    if (program->channels[row->channel].direction == TB_LOCAL) {
        transfer->locals_left--;
    } else {
        bool came = (tb_way_of(transfer, row->channel) == TB_WAY_STREAM);
        TB_INVARIANT(!came || (transfer->channels[row->channel].in_flight > 0 && transfer->folds_in_flight > 0));
        transfer->channels[row->channel].in_flight -= came;
        transfer->folds_in_flight -= came;
        if (transfer->slot_of[bucket] != TB_NONE) {
            TB_INVARIANT(transfer->free_slot_count < program->slot_count);
            transfer->free_slots[transfer->free_slot_count++] = transfer->slot_of[bucket];
            tb_staging_remove(&transfer->staging, row->bytes);
        }
        tb_round_consumed(transfer, bucket);
    }
    uint32_t next = program->fold_next[bucket];
    if (next != TB_NONE) {
        bool own = tb_bucket_channel(program, next)->direction == TB_LOCAL;
        if (transfer->buckets[next] == (own ? TB_BUCKET_ALLOWED : TB_BUCKET_STAGED)) {
            tb_bucket_become(transfer, next, TB_BUCKET_QUEUED);
            tb_round_offer(transfer, next);
        }
    }
    if (row->flags & TB_BUCKET_COMPLETES) {
        free_unread(transfer, row);
    }
    tb_folds_allow(transfer);
}

void tb_folds_read(tb_transfer *transfer, uint32_t bucket) {
    const tb_program *program = &transfer->program;
    if (program->header->piece_count == 0) {
        return;
    }
    const tb_bucket *row = &program->buckets[bucket];
    bool freed = false;
    for (uint32_t c = row->first_chunk; c < row->first_chunk + row->chunk_count; c++) {
        uint32_t source = program->chunks[c].source;
        if (source != TB_NONE && source >= TB_PIECE_BIT
            && --transfer->pool.readers[source - TB_PIECE_BIT] == 0) {
            free_piece(transfer, source - TB_PIECE_BIT);
            freed = true;
        }
    }
    if (freed) {
        tb_folds_allow(transfer);
    }
}
