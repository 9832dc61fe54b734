/*
 * What a transfer takes of memory, for as long as it is prepared. No lock is held: nobody else knows the transfer yet,
 * or any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "round/carrier.h"
#include "base/error.h"
#include "base/table.h"
#include "round/transfer.h"
#include "flow/staging.h"
#include "round/region.h"
#include "round/select.h"

/*
 * Staging is mapped, not filled: what is never needed is never taken. *memory is NULL if there are 0
 * bytes.
 */
static int32_t map(uint64_t bytes, uint8_t **memory, tb_error *err) {
    *memory = NULL;
    if (bytes == 0) {
        return TB_OK;
    }
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        return tb_fail(err, TB_ENO_MEMORY, -1, errno, "no memory for %llu bytes of staging", (unsigned long long)bytes);
    }
    *memory = mapped;
    return TB_OK;
}

static uint64_t slot_bytes(const tb_program *program) {
    return program->slot_count * program->slot_bytes;
}

/* round_fold.c says why a ring does not do if joint steps read of it. */
static uint64_t ring_bytes(const tb_transfer *transfer) {
    const tb_program *program = &transfer->program;
    if (transfer->joint.own == NULL || transfer->joint.alone) {
        return program->header->pool_bytes;
    }
    uint64_t all = 0;
    for (uint32_t piece = 0; piece < program->header->piece_count; piece++) {
        all += program->pieces[piece].pool_bytes;
    }
    return all;
}

static int32_t allocate_tables(tb_transfer *transfer, tb_error *err) {
    const tb_program_header *header = transfer->program.header;
    tb_pool *pool = &transfer->pool;
    transfer->reserved = malloc(sizeof *transfer->reserved);
    transfer->channels = tb_table(header->channel_count, sizeof *transfer->channels);
    transfer->buckets = tb_table(header->bucket_count, sizeof *transfer->buckets);
    transfer->waits = tb_table(header->bucket_count, sizeof *transfer->waits);
    transfer->slot_of = tb_table(header->bucket_count, sizeof *transfer->slot_of);
    transfer->free_slots = tb_table(transfer->program.slot_count, sizeof *transfer->free_slots);
    transfer->jobs.items = tb_table(header->bucket_count, sizeof(uint32_t));
    transfer->exchanges =
        tb_table((uint64_t)header->channel_count + transfer->member_count, sizeof *transfer->exchanges);
    pool->ring = ring_bytes(transfer);
    transfer->regions = tb_table(header->buffer_count, sizeof *transfer->regions);
    pool->piece_at = tb_table(header->piece_count, sizeof *pool->piece_at);
    pool->piece_end = tb_table(header->piece_count, sizeof *pool->piece_end);
    pool->order = tb_table(header->piece_count, sizeof *pool->order);
    pool->readers = tb_table(header->piece_count, sizeof *pool->readers);
    if (!transfer->channels || !transfer->buckets || !transfer->waits || !transfer->slot_of || !transfer->free_slots
        || !transfer->jobs.items || !transfer->exchanges || !transfer->regions || !pool->piece_at || !pool->piece_end
        || !pool->order || !pool->readers || !transfer->reserved) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for tables of a transfer of %u buckets",
                       header->bucket_count);
    }
    return TB_OK;
}

/*
 * Those who pull read pieces where they lie, and find the places of pieces (shared_at) behind the pieces. piece_at
 * stays beside that: what is shared could be changed by others.
 */
static int32_t map_pool(tb_transfer *transfer, tb_error *err) {
    const tb_program_header *header = transfer->program.header;
    tb_pool *pool = &transfer->pool;
    bool may_be_pulled = tb_session_may(transfer->session, TB_WAY_PULL | TB_WAY_JOINT, UINT32_MAX);
    if (header->pool_bytes == 0 || !may_be_pulled) {
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

/* Peers read pieces in it as in any other memory: carriers know it as a region. */
static int32_t show_pool(tb_transfer *transfer, tb_error *err) {
    tb_pool *pool = &transfer->pool;
    if (pool->memory == NULL || pool->bytes == 0) {
        return TB_OK;
    }
    pool->region = (tb_region){.address = (uint64_t)(uintptr_t)pool->memory,
                               .bytes = pool->bytes,
                               .memory = transfer->device != NULL ? TB_MEMORY_CUDA : TB_MEMORY_SHARED,
                               .device = pool->device};
    return tb_region_show(transfer->session, &pool->region, err);
}

static void unmap_pool(tb_transfer *transfer) {
    tb_pool *pool = &transfer->pool;
    if (pool->memory == NULL || transfer->quarantined) {
        return;
    }
    if (pool->shared_at != NULL) {
        tb_shared_unmap((uint64_t)(uintptr_t)pool->memory, pool->bytes, NULL);
    } else {
        munmap(pool->memory, transfer->program.header->pool_bytes);
    }
}

int32_t tb_transfer_allocate(tb_transfer *transfer, tb_error *err) {
    const tb_program *program = &transfer->program;
    int32_t code = allocate_tables(transfer, err);
    if (code == TB_OK) {
        code = map(slot_bytes(program), &transfer->slots, err);
    }
    if (code == TB_OK) {
        code = transfer->joint.alone      ? TB_OK
               : transfer->device != NULL ? transfer->session->devices->transfer_allocate(transfer, err)
                                          : map_pool(transfer, err);
    }
    if (code == TB_OK) {
        code = show_pool(transfer, err);
    }
    if (code != TB_OK) {
        return code;
    }
    transfer->staging.limit[0] = program->send_stream_bytes;
    transfer->staging.limit[1] = program->receive_stream_bytes;
    transfer->places = (tb_places){program, transfer->bindings, transfer->pool.memory, transfer->pool.piece_at};
    return TB_OK;
}

void tb_transfer_free(tb_transfer *transfer) {
    tb_staging_destroy(&transfer->staging);
    if (transfer->joint.own != NULL) {
        transfer->joint.carrier->transfer_free(transfer);
    }
    tb_region_withdraw(transfer->session, &transfer->pool.region);
    if (transfer->device != NULL) {
        transfer->session->devices->transfer_free(transfer);
    } else {
        unmap_pool(transfer);
    }
    if (transfer->slots != NULL) {
        munmap(transfer->slots, slot_bytes(&transfer->program));
    }
    free(transfer->reserved);
    free(transfer->pool.readers);
    free(transfer->pool.order);
    free(transfer->pool.piece_end);
    free(transfer->pool.piece_at);
    free(transfer->regions);
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].import != NULL) {
            tb_import_free(transfer->exchanges[i].import);
        }
        free(transfer->exchanges[i].ready.items);
    }
    free(transfer->exchanges);
    free(transfer->jobs.items);
    free(transfer->free_slots);
    free(transfer->slot_of);
    free(transfer->waits);
    free(transfer->buckets);
    free(transfer->channels);
    tb_program_free(&transfer->program);
    free(transfer->members);
    free(transfer->bindings);
    free(transfer->key);
    free(transfer);
}
