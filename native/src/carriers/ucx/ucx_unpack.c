/*
 * What comes to a GPU: how each chunk of a source is read, and the tables by which kernels then bring elements to where
 * they belong. Made in a thread of the session, given back in that of the workers; bounces are behind the lock of the
 * session's UCX.
 */
#include <stdlib.h>

#include "base/error.h"
#include "carriers/ucx/ucx.h"
#include "kernels/dtype.h"

enum {
    DIRECT_BYTES = 2048, /* runs from here on are worth a get of their own, */
    SPAN_BYTES = 4096,   /* and below are read with what lies between them, */
    SPAN_TIMES = 2,      /* if all of it is at most so many times what is wanted */
    ALIGNMENT = 256,     /* chunks in a slot are aligned as memory from the driver is */
    BOUNCE_BYTES = 64 << 20,
    FEWEST_SLOTS = 2,
};

static uint64_t aligned(uint64_t bytes) {
    return (bytes + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

static uint64_t bytes_of(const tb_chunk *chunk) {
    return chunk->elements * tb_dtype_size(chunk->source_dtype);
}

/* ---- how a chunk is read --------------------------------------------------------------------------------- */

static uint64_t run_of(const int64_t *descriptor) {
    return (uint64_t)descriptor[2 + 2 * descriptor[1]];
}

/* From the first byte that a descriptor reaches to the last. */
static uint64_t extent_of(const int64_t *descriptor, int64_t *first) {
    int64_t low = 0, high = (int64_t)run_of(descriptor);
    for (int64_t dim = 0; dim < descriptor[1]; dim++) {
        int64_t reach = (descriptor[2 + 2 * dim] - 1) * descriptor[3 + 2 * dim];
        low += reach < 0 ? reach : 0;
        high += reach > 0 ? reach : 0;
    }
    *first = descriptor[0] + low;
    return (uint64_t)(high - low);
}

/* from: the source's descriptor; NULL: a row. */
static bool is_direct(const tb_ucx_source *source, const tb_program *program, const tb_chunk *chunk,
                      const int64_t *from) {
    return chunk->operation == TB_OP_COPY && chunk->source_dtype == chunk->destination_dtype
           && source->buffers[chunk->destination] != NULL && (from == NULL || run_of(from) >= DIRECT_BYTES)
           && run_of(program->words + chunk->destination_descriptor) >= DIRECT_BYTES;
}

static tb_ucx_chunk way_of(const tb_ucx_source *source, const tb_program *program, const tb_chunk *chunk,
                           const int64_t *from) {
    tb_ucx_chunk way = {.way = TB_UCX_ROW, .bytes = bytes_of(chunk)};
    if (chunk->elements == 0 || is_direct(source, program, chunk, from)) {
        way.way = TB_UCX_DIRECT;
    } else if (from != NULL && run_of(from) < SPAN_BYTES) {
        int64_t first;
        uint64_t extent = extent_of(from, &first);
        if (extent <= SPAN_TIMES * way.bytes) {
            way = (tb_ucx_chunk){.way = TB_UCX_SPAN, .bytes = extent, .first = first};
        }
    }
    return way;
}

/* ---- bounces --------------------------------------------------------------------------------------------- */

/* What a slot has to have for any bucket that comes to this transfer. */
static uint64_t slot_bytes_of(const tb_program *program) {
    uint64_t most = 0;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        if (tb_bucket_channel(program, b)->direction != TB_RECEIVE) {
            continue;
        }
        uint64_t bytes = 0;
        for (uint32_t c = 0; c < bucket->chunk_count; c++) {
            bytes += aligned(SPAN_TIMES * bytes_of(&program->chunks[bucket->first_chunk + c]));
        }
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* The lock is held. */
static tb_ucx_bounce *find_bounce(const tb_ucx *ucx, const tb_transfer *transfer) {
    tb_ucx_bounce *bounce = ucx->bounces;
    while (bounce != NULL && bounce->transfer != transfer->handle) {
        bounce = bounce->next;
    }
    return bounce;
}

static int32_t do_map(tb_ucx *ucx, void *argument, tb_error *err) {
    tb_ucx_bounce *bounce = argument;
    uint64_t bytes = bounce->slots * bounce->slot_bytes;
    if (err == NULL) {
        return TB_OK; /* nobody waits any more */
    }
    tb_ucs_status status = tb_ucx_map(ucx, bounce->address, bytes, TB_UCS_MEMORY_CUDA, &bounce->handle);
    return status == TB_UCS_OK ? TB_OK
                               : tb_ucx_fail(ucx->api, status, TB_EUNSUPPORTED, ucx->rank, err,
                                             "UCX cannot register %llu bytes of CUDA memory to read through",
                                             (unsigned long long)bytes);
}

/* In the thread; nobody has it any more. */
static int32_t do_destroy(tb_ucx *ucx, void *argument, tb_error *err) {
    (void)err;
    tb_ucx_bounce *bounce = argument;
    if (bounce->handle != NULL) {
        ucx->api->ucp_mem_unmap(ucx->context, bounce->handle);
    }
    if (bounce->address != 0) {
        tb_device_free(ucx->device, bounce->address);
    }
    free(bounce);
    return TB_OK;
}

static int32_t make_bounce(tb_ucx *ucx, const tb_transfer *transfer, tb_ucx_bounce **made, tb_error *err) {
    tb_ucx_bounce *bounce = calloc(1, sizeof *bounce);
    if (bounce == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for memory to read through");
    }
    bounce->transfer = transfer->handle;
    bounce->slot_bytes = slot_bytes_of(&transfer->program);
    uint64_t slots = BOUNCE_BYTES / bounce->slot_bytes;
    bounce->slots = (uint32_t)(slots < FEWEST_SLOTS          ? FEWEST_SLOTS
                               : slots > TB_UCX_MOST_BOUNCES ? TB_UCX_MOST_BOUNCES
                                                             : slots);
    int32_t code = tb_device_allocate(ucx->device, bounce->slots * bounce->slot_bytes, &bounce->address, err);
    if (code == TB_OK) {
        code = tb_ucx_call(ucx, do_map, bounce, err);
    }
    if (code != TB_OK) {
        tb_ucx_call(ucx, do_destroy, bounce, NULL);
        return code;
    }
    *made = bounce;
    return TB_OK;
}

/* The one of the transfer, which its first source makes. */
static int32_t take_bounce(tb_ucx *ucx, const tb_transfer *transfer, tb_ucx_bounce **taken, tb_error *err) {
    tb_ucx_bounce *made = NULL;
    pthread_mutex_lock(&ucx->lock);
    tb_ucx_bounce *bounce = find_bounce(ucx, transfer);
    if (bounce == NULL) {
        pthread_mutex_unlock(&ucx->lock);
        int32_t code = make_bounce(ucx, transfer, &made, err);
        if (code != TB_OK) {
            return code;
        }
        pthread_mutex_lock(&ucx->lock);
        bounce = find_bounce(ucx, transfer); /* another thread may have been faster */
        if (bounce == NULL) {
            bounce = made;
            bounce->next = ucx->bounces;
            ucx->bounces = bounce;
            made = NULL;
        }
    }
    bounce->uses++;
    pthread_mutex_unlock(&ucx->lock);
    if (made != NULL) {
        tb_ucx_call(ucx, do_destroy, made, NULL);
    }
    *taken = bounce;
    return TB_OK;
}

static uint32_t take_slot(tb_ucx *ucx, tb_ucx_bounce *bounce) {
    pthread_mutex_lock(&ucx->lock);
    uint32_t slot = bounce->next_slot++ % bounce->slots;
    pthread_mutex_unlock(&ucx->lock);
    return slot;
}

static void leave_bounce(tb_ucx *ucx, tb_ucx_bounce *bounce) {
    pthread_mutex_lock(&ucx->lock);
    bool last = --bounce->uses == 0;
    tb_ucx_bounce **at = &ucx->bounces;
    while (last && *at != bounce) {
        at = &(*at)->next;
    }
    if (last) {
        *at = bounce->next;
    }
    pthread_mutex_unlock(&ucx->lock);
    if (last) {
        do_destroy(ucx, bounce, NULL);
    }
}

/* ---- tables ---------------------------------------------------------------------------------------------- */

typedef struct making {
    tb_ucx_source *source;
    const tb_import *import;
    const tb_transfer *transfer;
    tb_ucx_unpack *unpack;
} making;

static const int64_t *descriptor_of(const tb_import *import, const tb_wire_end *end) {
    return end->descriptor == TB_NONE ? NULL : import->words + end->descriptor;
}

/* From the slot to where the chunk belongs. */
static int32_t add_moves(const making *make, const tb_chunk *chunk, const tb_ucx_chunk *way, const tb_wire_end *end,
                         uint64_t slot, tb_error *err) {
    const int64_t row[] = {0, 0, (int64_t)way->bytes};
    tb_cuda_place from = {slot + way->at, row, end->dtype};
    if (way->way == TB_UCX_SPAN) {
        from.address -= (uint64_t)way->first;
        from.descriptor = descriptor_of(make->import, end);
    }
    return tb_device_add_chunk(make->transfer, &make->unpack->moves, make->unpack->group_count, chunk, &from, err);
}

static int32_t add_bucket(const making *make, uint8_t stage, uint32_t number, tb_error *err) {
    const tb_program *program = &make->transfer->program;
    const tb_bucket *bucket = &program->buckets[number];
    tb_ucx_unpack *unpack = make->unpack;
    tb_ucx *ucx = make->source->ucx;
    uint32_t *slot = &unpack->slot_of[unpack->group_count];
    uint64_t used = 0;
    int32_t code = TB_OK;
    *slot = TB_NONE;
    for (uint32_t c = bucket->first_chunk; c < bucket->first_chunk + bucket->chunk_count && code == TB_OK; c++) {
        const tb_chunk *chunk = &program->chunks[c];
        const tb_wire_end *end = tb_import_end(make->import, stage, c);
        tb_ucx_chunk *way = &unpack->chunks[unpack->first_end[stage] + (c - unpack->first_chunk[stage])];
        *way = way_of(make->source, program, chunk, descriptor_of(make->import, end));
        if (way->way == TB_UCX_DIRECT) {
            continue;
        }
        code = unpack->bounce == NULL ? take_bounce(ucx, make->transfer, &unpack->bounce, err) : TB_OK;
        if (code != TB_OK) {
            return code;
        }
        *slot = *slot == TB_NONE ? take_slot(ucx, unpack->bounce) : *slot;
        way->at = used;
        used += aligned(way->bytes);
        code = add_moves(make, chunk, way, end, unpack->bounce->address + *slot * unpack->bounce->slot_bytes, err);
    }
    unpack->group_count++;
    return code;
}

static int32_t add_buckets(const making *make, const tb_exchange *exchange, tb_error *err) {
    int32_t code = TB_OK;
    for (uint8_t stage = 0; stage < TB_STAGES; stage++) {
        make->unpack->first_group[stage] = make->unpack->group_count;
        make->unpack->first_end[stage] = make->import->first_end[stage];
        make->unpack->first_chunk[stage] = make->import->first_chunk[stage];
        if (exchange->receive[stage] == TB_NONE) {
            continue;
        }
        const tb_channel *channel = &make->transfer->program.channels[exchange->receive[stage]];
        for (uint32_t i = 0; i < channel->bucket_count && code == TB_OK; i++) {
            code = add_bucket(make, stage, channel->first_bucket + i, err);
        }
    }
    return code;
}

static uint32_t buckets_of(const tb_exchange *exchange) {
    uint32_t count = 0;
    for (int stage = 0; stage < TB_STAGES; stage++) {
        uint32_t channel = exchange->receive[stage];
        count += channel == TB_NONE ? 0 : exchange->transfer->program.channels[channel].bucket_count;
    }
    return count;
}

int32_t tb_ucx_unpack_make(tb_ucx_source *source, const tb_import *import, const tb_exchange *exchange, tb_error *err) {
    uint32_t buckets = buckets_of(exchange);
    tb_ucx_unpack *unpack = calloc(1, sizeof *unpack);
    source->unpack = unpack;
    if (unpack != NULL) {
        unpack->slot_of = calloc((size_t)buckets + 1, sizeof *unpack->slot_of);
        unpack->chunks = calloc((size_t)import->end_count + 1, sizeof *unpack->chunks);
    }
    if (unpack == NULL || unpack->slot_of == NULL || unpack->chunks == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for tables of %u chunks of rank %d", import->end_count,
                       import->rank);
    }
    making make = {source, import, exchange->transfer, unpack};
    int32_t code = add_buckets(&make, exchange, err);
    return code == TB_OK && unpack->bounce != NULL
               ? tb_device_load(source->ucx->device, &unpack->moves, unpack->group_count, err)
               : code;
}

void tb_ucx_unpack_free(tb_ucx_source *source) {
    tb_ucx_unpack *unpack = source->unpack;
    if (unpack == NULL) {
        return;
    }
    tb_device_unload(source->ucx->device, &unpack->moves);
    if (unpack->bounce != NULL) {
        leave_bounce(source->ucx, unpack->bounce);
    }
    free(unpack->chunks);
    free(unpack->slot_of);
    free(unpack);
}
