/* What a graph takes of memory, for as long as it is prepared. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "carriers/carrier.h"
#include "cuda/device.h"
#include "base/error.h"
#include "round/transfer.h"
#include "carriers/nccl/nccl_rounds.h"
#include "round/round.h"

static void *table(uint64_t count, size_t row) {
    return calloc(count + 1, row);
}

/*
 * Staging is mapped, not filled: what is never needed is never taken. *memory is NULL where there are 0
 * bytes.
 */
static int32_t map(uint64_t bytes, uint8_t **memory, tb_error *err) {
    *memory = NULL;
    if (bytes == 0) {
        return TB_OK;
    }
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        return tb_fail(err, TB_ENO_MEMORY, -1, errno, "%llu bytes of staging", (unsigned long long)bytes);
    }
    *memory = mapped;
    return TB_OK;
}

static uint64_t slot_bytes(const tb_program *program) {
    return program->slot_count * program->slot_bytes;
}

/* round_fold.c says why a ring does not do where NCCL reads of it. */
static uint64_t ring_bytes(const tb_graph *graph) {
    const tb_program *program = &graph->program;
    if (graph->waves == NULL || !graph->waves->mixed) {
        return program->header->pool_bytes;
    }
    uint64_t all = 0;
    for (uint32_t piece = 0; piece < program->header->piece_count; piece++) {
        all += program->pieces[piece].pool_bytes;
    }
    return all;
}

static int32_t allocate_tables(tb_graph *graph, tb_error *err) {
    const tb_program_header *header = graph->program.header;
    tb_pool *pool = &graph->pool;
    graph->reserved = malloc(sizeof *graph->reserved);
    graph->channels = table(header->channel_count, sizeof *graph->channels);
    graph->buckets = table(header->bucket_count, sizeof *graph->buckets);
    graph->waits = table(header->bucket_count, sizeof *graph->waits);
    graph->slot_of = table(header->bucket_count, sizeof *graph->slot_of);
    graph->free_slots = table(graph->program.slot_count, sizeof *graph->free_slots);
    graph->jobs.items = table(header->bucket_count, sizeof(uint32_t));
    graph->sides = table((uint64_t)header->channel_count + graph->member_count, sizeof *graph->sides);
    pool->ring = ring_bytes(graph);
    graph->regions = table(header->buffer_count, sizeof *graph->regions);
    pool->piece_at = table(header->piece_count, sizeof *pool->piece_at);
    pool->piece_end = table(header->piece_count, sizeof *pool->piece_end);
    pool->order = table(header->piece_count, sizeof *pool->order);
    pool->readers = table(header->piece_count, sizeof *pool->readers);
    if (!graph->channels || !graph->buckets || !graph->waits || !graph->slot_of || !graph->free_slots
        || !graph->jobs.items || !graph->sides || !graph->regions || !pool->piece_at || !pool->piece_end
        || !pool->order || !pool->readers || !graph->reserved) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "tables of a graph of %u buckets", header->bucket_count);
    }
    return TB_OK;
}

/*
 * Those who pull read pieces where they lie, and where that is behind them. piece_at stays: what is shared
 * could be changed by others.
 */
static int32_t map_pool(tb_graph *graph, tb_error *err) {
    const tb_program_header *header = graph->program.header;
    tb_pool *pool = &graph->pool;
    if (header->pool_bytes == 0 || (graph->session->host.carriers & ~(uint32_t)TB_CARRY_STREAM) == 0) {
        return map(header->pool_bytes, &pool->memory, err);
    }
    uint64_t pieces = (header->pool_bytes + 63) & ~(uint64_t)63;
    uint64_t bytes = pieces + header->piece_count * sizeof *pool->shared_at;
    uint64_t address;
    int32_t fd;
    int32_t code = tb_shared_create("tensorbus pool", bytes, &fd, &address, err);
    if (code == TB_OK) {
        close(fd);
        pool->memory = (uint8_t *)(uintptr_t)address;
        pool->bytes = bytes;
        pool->shared_at = (uint64_t *)(pool->memory + pieces);
    }
    return code;
}

static void unmap_pool(tb_graph *graph) {
    tb_pool *pool = &graph->pool;
    if (pool->memory == NULL || graph->quarantined) {
        return;
    }
    if (pool->shared_at != NULL) {
        tb_shared_unmap((uint64_t)(uintptr_t)pool->memory, pool->bytes, NULL);
    } else {
        munmap(pool->memory, graph->program.header->pool_bytes);
    }
}

int32_t tb_graph_allocate(tb_graph *graph, tb_error *err) {
    const tb_program *program = &graph->program;
    int32_t code = allocate_tables(graph, err);
    if (code == TB_OK) {
        code = map(slot_bytes(program), &graph->slots, err);
    }
    if (code == TB_OK) {
        bool steps_alone = graph->waves != NULL && !graph->waves->mixed;
        code = steps_alone             ? TB_OK
               : graph->device != NULL ? tb_device_graph_allocate(graph, err)
                                       : map_pool(graph, err);
    }
    if (code != TB_OK) {
        return code;
    }
    graph->staging.limit[0] = program->send_stream_bytes;
    graph->staging.limit[1] = program->receive_stream_bytes;
    graph->places = (tb_places){program, graph->bindings, graph->pool.memory, graph->pool.piece_at};
    return TB_OK;
}

void tb_graph_free(tb_graph *graph) {
    tb_staging_destroy(&graph->staging);
    tb_nccl_graph_free(graph);
    if (graph->device != NULL) {
        tb_device_graph_free(graph);
    } else {
        unmap_pool(graph);
    }
    if (graph->slots != NULL) {
        munmap(graph->slots, slot_bytes(&graph->program));
    }
    free(graph->reserved);
    free(graph->pool.readers);
    free(graph->pool.order);
    free(graph->pool.piece_end);
    free(graph->pool.piece_at);
    free(graph->regions);
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].import != NULL) {
            tb_import_free(graph->sides[i].import);
        }
        free(graph->sides[i].ready.items);
    }
    free(graph->sides);
    free(graph->jobs.items);
    free(graph->free_slots);
    free(graph->slot_of);
    free(graph->waits);
    free(graph->buckets);
    free(graph->channels);
    tb_program_free(&graph->program);
    free(graph->members);
    free(graph->bindings);
    free(graph->key);
    free(graph);
}
