/* A graph whose tensors lie on a GPU: its pool, and what it moves from this rank to itself. */
#include <stdlib.h>
#include <string.h>

#include "cuda/device.h"
#include "base/error.h"
#include "round/round.h"
#include "carriers/nccl/nccl_steps.h"

void tb_device_piece_words(const tb_piece *piece, int64_t words[TB_PIECE_WORDS]) {
    int64_t item = tb_dtype_size(piece->dtype);
    words[0] = 0;
    words[1] = 1;
    words[2] = (int64_t)piece->elements;
    words[3] = tb_accumulator_size(piece->dtype);
    words[4] = item;
}

static uint64_t piece_address(const tb_graph *graph, uint32_t end) {
    return (uint64_t)(uintptr_t)graph->pool.memory + graph->pool.fixed_at[end - TB_PIECE_BIT];
}

int32_t tb_device_add_chunk(const tb_graph *graph, tb_cuda_moves *moves, uint32_t group,
                            const tb_chunk *chunk, const tb_cuda_place *source, tb_error *err) {
    const tb_program *program = &graph->program;
    tb_cuda_ask ask = {.group = group, .source = *source};
    if (chunk->operation != TB_OP_REDUCE) {
        ask.destination =
            (tb_cuda_place){graph->bindings[chunk->destination].address,
                            program->words + chunk->destination_descriptor, chunk->destination_dtype};
        return tb_cuda_moves_add(moves, &ask, err);
    }
    const tb_piece *piece = &program->pieces[chunk->destination - TB_PIECE_BIT];
    int64_t packed[] = {0, 0, (int64_t)(piece->elements * tb_accumulator_size(piece->dtype))};
    ask.destination = (tb_cuda_place){piece_address(graph, chunk->destination), packed, piece->dtype};
    ask.fold = true;
    ask.first = chunk->fold_position == 0;
    ask.last = chunk->fold_position == piece->contributions - 1;
    ask.partial_op = piece->op;
    ask.divide_by = piece->divisor;
    return tb_cuda_moves_add(moves, &ask, err);
}

/* ---- from this rank to itself
 * ------------------------------------------------------------------------------ */

static bool same_place(const tb_graph *graph, const tb_chunk *chunk, const tb_cuda_place *source) {
    const int64_t *words = graph->program.words + chunk->destination_descriptor;
    return chunk->operation == TB_OP_COPY && chunk->source_dtype == chunk->destination_dtype
        && source->address == graph->bindings[chunk->destination].address && source->descriptor[1] == words[1]
        && memcmp(source->descriptor, words, (size_t)(3 + 2 * words[1]) * sizeof *words) == 0;
}

static int32_t add_local_chunk(tb_graph *graph, uint32_t bucket, const tb_chunk *chunk, tb_error *err) {
    const tb_program *program = &graph->program;
    int64_t words[TB_PIECE_WORDS];
    tb_cuda_place source = {.dtype = chunk->source_dtype, .descriptor = words};
    if (chunk->source >= TB_PIECE_BIT) {
        source.address = piece_address(graph, chunk->source);
        tb_device_piece_words(&program->pieces[chunk->source - TB_PIECE_BIT], words);
    } else {
        source.address = graph->bindings[chunk->source].address;
        source.descriptor = program->words + chunk->source_descriptor;
    }
    return same_place(graph, chunk, &source)
             ? TB_OK
             : tb_device_add_chunk(graph, graph->local_moves, bucket, chunk, &source, err);
}

static int32_t add_local_buckets(tb_graph *graph, tb_error *err) {
    const tb_program *program = &graph->program;
    int32_t code = TB_OK;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        bool local = tb_bucket_channel(program, b)->direction == TB_LOCAL;
        for (uint32_t c = 0; c < bucket->chunk_count && local && code == TB_OK; c++) {
            code = add_local_chunk(graph, b, &program->chunks[bucket->first_chunk + c], err);
        }
    }
    return code;
}

/* A contribution that NCCL brought lies in memory that its own moves know. */
static void submit(tb_pull *pull) {
    tb_graph *graph = pull->graph;
    if (tb_is_by_nccl(graph, graph->program.buckets[pull->bucket].channel)) {
        tb_device_submit(graph->device, pull, &graph->waves->moves, graph->waves->fold_of[pull->bucket]);
    } else {
        tb_device_submit(graph->device, pull, graph->local_moves, pull->bucket);
    }
}

static const tb_carrier mover = {.name = "device", .memory = TB_MEMORY_CUDA, .submit = submit};

static int32_t allocate_pool(tb_graph *graph, tb_error *err) {
    tb_device *device = graph->device;
    tb_pool *pool = &graph->pool;
    uint64_t address;
    pool->bytes = pool->ring;
    pool->fixed_at = calloc((size_t)graph->program.header->piece_count + 1, sizeof *pool->fixed_at);
    if (pool->fixed_at == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the places of %u pieces",
                       graph->program.header->piece_count);
    }
    if (pool->bytes == 0) {
        return TB_OK;
    }
    int32_t code = tb_device_allocate(device, pool->bytes, &address, err);
    if (code == TB_OK) {
        pool->memory = (uint8_t *)(uintptr_t)address;
        tb_folds_fix_places(graph);
        code = tb_device_describe(device, address, pool->bytes, &pool->device, err);
    }
    return code;
}

int32_t tb_device_graph_allocate(tb_graph *graph, tb_error *err) {
    int32_t code = allocate_pool(graph, err);
    graph->mover = &mover;
    graph->local_moves = calloc(1, sizeof *graph->local_moves);
    if (code == TB_OK && graph->local_moves == NULL) {
        code = tb_fail(err, TB_ENO_MEMORY, -1, 0, "a table of moves");
    }
    if (code == TB_OK) {
        code = add_local_buckets(graph, err);
    }
    return code == TB_OK
             ? tb_device_load(graph->device, graph->local_moves, graph->program.header->bucket_count, err)
             : code;
}

void tb_device_graph_free(tb_graph *graph) {
    tb_device *device = graph->device;
    if (graph->local_moves != NULL) {
        tb_device_unload(device, graph->local_moves);
        free(graph->local_moves);
    }
    if (graph->pool.memory != NULL && !graph->quarantined) {
        tb_device_free(device, (uint64_t)(uintptr_t)graph->pool.memory);
    }
    free(graph->pool.fixed_at);
}
