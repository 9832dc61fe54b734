/*
 * A transfer whose tensors lie on a GPU: its pool, and what it moves from this rank to itself. Calls block while the
 * worker answers, and are made without the session's lock.
 */
#include <stdlib.h>
#include <string.h>

#include "device/device.h"
#include "base/error.h"
#include "kernels/dtype.h"
#include "round/carrier.h"
#include "round/round_fold.h"

void tb_device_piece_words(const tb_piece *piece, int64_t words[TB_PIECE_WORDS]) {
    int64_t item = tb_dtype_size(piece->dtype);
    words[0] = 0;
    words[1] = 1;
    words[2] = (int64_t)piece->elements;
    words[3] = tb_accumulator_size(piece->dtype);
    words[4] = item;
}

static uint64_t piece_address(const tb_transfer *transfer, uint32_t end) {
    return (uint64_t)(uintptr_t)transfer->pool.memory + transfer->pool.fixed_at[end - TB_PIECE_BIT];
}

int32_t tb_device_add_chunk(const tb_transfer *transfer, tb_cuda_moves *moves, uint32_t group,
                            const tb_chunk *chunk, const tb_cuda_place *source, tb_error *err) {
    const tb_program *program = &transfer->program;
    tb_cuda_ask ask = {.group = group, .source = *source};
    if (chunk->operation != TB_OP_REDUCE) {
        ask.destination =
            (tb_cuda_place){transfer->bindings[chunk->destination].address,
                            program->words + chunk->destination_descriptor, chunk->destination_dtype};
        return tb_cuda_moves_add(moves, &ask, err);
    }
    const tb_piece *piece = &program->pieces[chunk->destination - TB_PIECE_BIT];
    int64_t packed[] = {0, 0, (int64_t)(piece->elements * tb_accumulator_size(piece->dtype))};
    ask.destination = (tb_cuda_place){piece_address(transfer, chunk->destination), packed, piece->dtype};
    ask.fold = true;
    ask.first = chunk->fold_position == 0;
    ask.last = chunk->fold_position == piece->contributions - 1;
    ask.partial_op = piece->op;
    ask.divide_by = piece->divisor;
    return tb_cuda_moves_add(moves, &ask, err);
}

/* ---- from this rank to itself -------------------------------------------------------------------------- */

static bool same_place(const tb_transfer *transfer, const tb_chunk *chunk, const tb_cuda_place *source) {
    const int64_t *words = transfer->program.words + chunk->destination_descriptor;
    return chunk->operation == TB_OP_COPY && chunk->source_dtype == chunk->destination_dtype
        && source->address == transfer->bindings[chunk->destination].address && source->descriptor[1] == words[1]
        && memcmp(source->descriptor, words, (size_t)(3 + 2 * words[1]) * sizeof *words) == 0;
}

static int32_t add_local_chunk(tb_transfer *transfer, uint32_t bucket, const tb_chunk *chunk, tb_error *err) {
    const tb_program *program = &transfer->program;
    int64_t words[TB_PIECE_WORDS];
    tb_cuda_place source = {.dtype = chunk->source_dtype, .descriptor = words};
    if (chunk->source >= TB_PIECE_BIT) {
        source.address = piece_address(transfer, chunk->source);
        tb_device_piece_words(&program->pieces[chunk->source - TB_PIECE_BIT], words);
    } else {
        source.address = transfer->bindings[chunk->source].address;
        source.descriptor = program->words + chunk->source_descriptor;
    }
    return same_place(transfer, chunk, &source)
             ? TB_OK
             : tb_device_add_chunk(transfer, transfer->local_moves, bucket, chunk, &source, err);
}

static int32_t add_local_buckets(tb_transfer *transfer, tb_error *err) {
    const tb_program *program = &transfer->program;
    int32_t code = TB_OK;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        bool local = tb_bucket_channel(program, b)->direction == TB_LOCAL;
        for (uint32_t c = 0; c < bucket->chunk_count && local && code == TB_OK; c++) {
            code = add_local_chunk(transfer, b, &program->chunks[bucket->first_chunk + c], err);
        }
    }
    return code;
}

static void submit(tb_pull *pull) {
    tb_device_submit(pull->transfer->device, pull, pull->transfer->local_moves, pull->bucket);
}

static int32_t allocate_pool(tb_transfer *transfer, tb_error *err) {
    tb_device *device = transfer->device;
    tb_pool *pool = &transfer->pool;
    uint64_t address;
    pool->bytes = pool->ring;
    pool->fixed_at = calloc((size_t)transfer->program.header->piece_count + 1, sizeof *pool->fixed_at);
    if (pool->fixed_at == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for the places of %u pieces",
                       transfer->program.header->piece_count);
    }
    if (pool->bytes == 0) {
        return TB_OK;
    }
    int32_t code = tb_device_allocate(device, pool->bytes, &address, err);
    if (code == TB_OK) {
        pool->memory = (uint8_t *)(uintptr_t)address;
        tb_folds_fix_places(transfer);
        code = tb_device_describe(device, address, pool->bytes, &pool->device, err);
    }
    return code;
}

int32_t tb_device_transfer_allocate(tb_transfer *transfer, tb_error *err) {
    int32_t code = allocate_pool(transfer, err);
    transfer->mover = submit;
    transfer->local_moves = calloc(1, sizeof *transfer->local_moves);
    if (code == TB_OK && transfer->local_moves == NULL) {
        code = tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a table of moves");
    }
    if (code == TB_OK) {
        code = add_local_buckets(transfer, err);
    }
    return code == TB_OK
             ? tb_device_load(transfer->device, transfer->local_moves, transfer->program.header->bucket_count, err)
             : code;
}

void tb_device_transfer_free(tb_transfer *transfer) {
    tb_device *device = transfer->device;
    if (transfer->local_moves != NULL) {
        tb_device_unload(device, transfer->local_moves);
        free(transfer->local_moves);
    }
    if (transfer->pool.memory != NULL && !transfer->quarantined) {
        tb_device_free(device, (uint64_t)(uintptr_t)transfer->pool.memory);
    }
    free(transfer->pool.fixed_at);
}
