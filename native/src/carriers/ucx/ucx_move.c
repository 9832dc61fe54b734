/*
 * Buckets that are read. What lies in runs at both ends, of one element type, comes to where it belongs; the rest comes
 * into slots, from where it is gathered, cast and folded: on a GPU by its kernels, all of a bucket at once
 * (ucx_unpack.c). A bucket is put in its order, whatever order its gets come in. All of this but tb_ucx_submit runs in
 * the thread of the workers; no lock is needed.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "carriers/ucx/ucx.h"
#include "kernels/dtype.h"

enum {
    DIRECT_BYTES = 2048,  /* a run of this length or more gets a read of its own, straight to its place */
    STEP_BYTES = 4 << 20, /* a step ends at this many bytes of such reads, */
    STEP_GETS = 64,       /* or at this many of them */
    SPAN_BYTES = 4096,    /* runs shorter than this are read together with the gaps between them, */
    SPAN_GAPS = 3,        /* if the gaps are at most this many times as long as the runs */
};

/* ---- what has come --------------------------------------------------------------------------------------- */

static void came(tb_ucx_wait *wait, tb_ucs_status status) {
    tb_ucx_move *move = wait->move;
    wait->gets--;
    move->gets--;
    if (status == TB_UCS_OK) {
        return;
    }
    tb_ucx_source *source = move->source;
    if (status != TB_UCS_CANCELED) {
        source->why = source->why == TB_UCS_OK ? status : source->why;
    } else if (source->code != TB_OK && move->code == TB_OK) {
        move->code = source->code;
        move->error = source->error;
    }
    move->status = move->status == TB_UCS_OK ? status : move->status;
}

static void got(void *request, tb_ucs_status status, void *user_data) {
    tb_ucx_wait *wait = user_data;
    tb_ucx_source *source = wait->move->source;
    source->ucx->api->ucp_request_free(request);
    came(wait, status);
    tb_ucx_got(source);
}

/* Asks for a row of bytes. */
static void get(tb_ucx_wait *wait, const tb_ucx_region *region, uint64_t at, tb_ucx_place to, uint64_t bytes) {
    tb_ucs_status status;
    wait->gets++;
    wait->move->gets++;
    if (!tb_ucx_get(wait->move->source, region, at, to, bytes, got, wait, &status)) {
        came(wait, status);
    }
}

/* ---- a chunk --------------------------------------------------------------------------------------------- */

static const tb_wire_end *end_of(const tb_ucx_move *move) {
    const tb_program *program = &move->pull->transfer->program;
    return tb_import_end(move->pull->import, tb_bucket_channel(program, move->pull->bucket)->stage, move->chunk);
}

/* A source that says too much of a piece is stopped before anything is asked for. */
static bool piece_at(tb_ucx_move *move, const tb_wire_end *end, uint64_t bytes, uint64_t *at) {
    const tb_bucket *bucket = &move->pull->transfer->program.buckets[move->pull->bucket];
    const tb_wire_region *pool = &move->pull->import->regions[end->region];
    *at = move->places[move->chunk - bucket->first_chunk];
    if (*at > pool->pieces_at || bytes > pool->pieces_at - *at) {
        move->code = tb_fail(&move->error, TB_EPROTOCOL, move->source->rank, 0,
                             "a reduced piece of rank %d lies beyond its pool", move->source->rank);
        return false;
    }
    return true;
}

/* Finds the elements of a chunk at its source. */
static bool start_from(tb_ucx_move *move, const tb_chunk *chunk, const tb_wire_end *end) {
    move->region = &move->source->regions[end->region];
    if (end->descriptor != TB_NONE) {
        tb_cursor_start(&move->from, (void *)(uintptr_t)(move->region->base + end->at),
                        move->pull->import->words + end->descriptor);
        return true;
    }
    uint64_t bytes = chunk->elements * tb_dtype_size(end->dtype), at;
    if (!piece_at(move, end, bytes, &at)) {
        return false;
    }
    tb_cursor_start_row(&move->from, (uint8_t *)(uintptr_t)(move->region->base + at), bytes);
    return true;
}

static void start_to(tb_ucx_move *move, const tb_chunk *chunk, int type) {
    tb_flow_start_end(&move->to, &move->pull->transfer->places, chunk, true);
    const tb_ucx_memory *memory = move->source->buffers[chunk->destination];
    move->here = (tb_ucx_place){.memory = memory == NULL ? NULL : memory->handle, .type = type};
    move->direct = memory != NULL;
}

/* Bytes come to where they belong, or into the bucket's slot. */
static void start_on_device(tb_ucx_move *move, const tb_chunk *chunk, const tb_wire_end *end, const tb_ucx_chunk *way) {
    const tb_ucx_bounce *bounce = move->source->unpack->bounce;
    move->elements = way->bytes;
    move->direct = true;
    if (way->way == TB_UCX_DIRECT) {
        if (way->bytes > 0) {
            start_to(move, chunk, TB_UCS_MEMORY_CUDA);
        }
        return;
    }
    if (way->way == TB_UCX_SPAN) {
        uint64_t first = move->region->base + end->at + (uint64_t)way->first;
        tb_cursor_start_row(&move->from, (uint8_t *)(uintptr_t)first, way->bytes);
    }
    uint64_t to = bounce->address + move->slot * bounce->slot_bytes + way->at;
    tb_cursor_start_row(&move->to, (uint8_t *)(uintptr_t)to, way->bytes);
    move->here = (tb_ucx_place){.memory = bounce->handle, .type = TB_UCS_MEMORY_CUDA};
}

static bool start_chunk(tb_ucx_move *move) {
    const tb_transfer *transfer = move->pull->transfer;
    const tb_chunk *chunk = &transfer->program.chunks[move->chunk];
    const tb_wire_end *end = end_of(move);
    move->elements = chunk->elements;
    move->started = true;
    if (!start_from(move, chunk, end)) {
        return false;
    }
    if (move->source->unpack != NULL) {
        uint8_t stage = tb_bucket_channel(&transfer->program, move->pull->bucket)->stage;
        start_on_device(move, chunk, end, tb_ucx_chunk_of(move->source->unpack, stage, move->chunk));
        return true;
    }
    move->direct = chunk->operation == TB_OP_COPY && chunk->source_dtype == chunk->destination_dtype;
    if (move->direct) {
        start_to(move, chunk, TB_UCS_MEMORY_HOST);
        move->direct = move->direct && move->from.run_bytes >= DIRECT_BYTES && move->to.run_bytes >= DIRECT_BYTES;
    }
    return true;
}

/* What a chunk's elements are counted in. */
static uint64_t unit_of(const tb_ucx_move *move) {
    return move->source->unpack != NULL
               ? 1
               : tb_dtype_size(move->pull->transfer->program.chunks[move->chunk].source_dtype);
}

/* ---- asking: steps --------------------------------------------------------------------------------------- */

static tb_ucx_step *add_step(tb_ucx_move *move) {
    tb_ucx_step *step = calloc(1, sizeof *step);
    if (step == NULL) {
        move->code = tb_fail(&move->error, TB_ENO_MEMORY, -1, 0, "no memory for a step of a bucket");
        return NULL;
    }
    step->wait.move = move;
    *move->last = step;
    move->last = &step->next;
    return step;
}

static void step_direct(tb_ucx_move *move, tb_ucx_step *step, uint64_t size) {
    uint64_t asked = 0;
    for (int i = 0; i < STEP_GETS && asked < STEP_BYTES && asked < move->elements * size; i++) {
        struct iovec from, to;
        uint64_t most = tb_least(tb_least(move->elements * size - asked, TB_UCX_GET_BYTES), STEP_BYTES - asked), bytes;
        tb_cursor_iov(&move->from, &from, 1, most, &bytes);
        tb_cursor_iov(&move->to, &to, 1, bytes, &bytes);
        move->here.at = to.iov_base;
        get(&step->wait, move->region, (uint64_t)(uintptr_t)from.iov_base, move->here, bytes);
        tb_cursor_advance(&move->from, bytes);
        tb_cursor_advance(&move->to, bytes);
        asked += bytes;
    }
    step->elements = asked / size;
}

static tb_ucx_place in_slot(const tb_ucx *ucx, uint8_t *at) {
    return (tb_ucx_place){at, ucx->slots_memory, TB_UCS_MEMORY_HOST};
}

/*
 * Short runs that lie close together are read with what lies between: the cursor of the source then goes over the slot
 * as it would over the source. 0 if they do not lie so.
 */
static uint64_t step_span(tb_ucx *ucx, tb_ucx_move *move, tb_ucx_step *step, int runs) {
    uint64_t first = (uint64_t)(uintptr_t)ucx->runs[0].iov_base, end = first, bytes = 0;
    int count = 0;
    for (; count < runs; count++) {
        uint64_t at = (uint64_t)(uintptr_t)ucx->runs[count].iov_base, length = ucx->runs[count].iov_len;
        if (at < end || at - end > SPAN_GAPS * length || at + length - first > TB_UCX_SLOT_BYTES) {
            break;
        }
        end = at + length;
        bytes += length;
    }
    if (count < 2) {
        return 0;
    }
    ptrdiff_t shift = (ptrdiff_t)((uintptr_t)step->slot - (uintptr_t)first);
    step->from = move->from;
    step->from.base = (uint8_t *)((uintptr_t)step->from.base + (uintptr_t)shift);
    step->from.run_start = (uint8_t *)((uintptr_t)step->from.run_start + (uintptr_t)shift);
    get(&step->wait, move->region, first, in_slot(ucx, step->slot), end - first);
    return bytes;
}

static uint64_t step_row(tb_ucx *ucx, tb_ucx_move *move, tb_ucx_step *step, int runs) {
    uint64_t bytes = 0;
    for (int i = 0; i < runs && i < STEP_GETS; i++) {
        get(&step->wait, move->region, (uint64_t)(uintptr_t)ucx->runs[i].iov_base, in_slot(ucx, step->slot + bytes),
            ucx->runs[i].iov_len);
        bytes += ucx->runs[i].iov_len;
    }
    tb_cursor_start_row(&step->from, step->slot, bytes);
    return bytes;
}

static void step_slot(tb_ucx *ucx, tb_ucx_move *move, tb_ucx_step *step, uint64_t size) {
    uint64_t bytes;
    step->slot = ucx->free_slots[--ucx->free_slot_count];
    uint64_t most = tb_least(move->elements, TB_UCX_SLOT_BYTES / size) * size;
    int runs = tb_cursor_iov(&move->from, ucx->runs, TB_UCX_RUNS, most, &bytes);
    bytes = move->from.run_bytes < SPAN_BYTES ? step_span(ucx, move, step, runs) : 0;
    if (bytes == 0) {
        bytes = step_row(ucx, move, step, runs);
    }
    tb_cursor_advance(&move->from, bytes);
    step->elements = bytes / size;
}

static bool has_room(const tb_ucx *ucx, const tb_ucx_source *source) {
    return source->gets < TB_UCX_MOST_GETS && ucx->gets < TB_UCX_MOST_GETS_OF_ALL && source->bytes < TB_UCX_MOST_BYTES
           && ucx->bytes < TB_UCX_MOST_BYTES_OF_ALL;
}

/* False if there is no room for more now, or it failed. */
static bool ask_some(tb_ucx *ucx, tb_ucx_move *move) {
    if (!move->started && !start_chunk(move)) {
        return false;
    }
    uint64_t size = unit_of(move);
    if (move->elements == 0) {
        move->chunk++;
        move->started = false;
        return true;
    }
    bool room = has_room(ucx, move->source) && (move->direct || ucx->free_slot_count > 0);
    tb_ucx_step *step = room ? add_step(move) : NULL;
    if (step == NULL) {
        return false;
    }
    if (move->direct) {
        step_direct(move, step, size);
    } else {
        step_slot(ucx, move, step, size);
    }
    move->elements -= step->elements;
    step->bytes = step->elements * size;
    move->source->bytes += step->bytes;
    ucx->bytes += step->bytes;
    return true;
}

/* A pool says behind its pieces where those of a bucket lie; they stay until we have read them. */
static bool ask_places(tb_ucx_move *move) {
    const tb_import *import = move->pull->import;
    const tb_bucket *bucket = &move->pull->transfer->program.buckets[move->pull->bucket];
    uint8_t stage = tb_bucket_channel(&move->pull->transfer->program, move->pull->bucket)->stage;
    move->places = calloc((size_t)bucket->chunk_count + 1, sizeof *move->places);
    if (move->places == NULL) {
        move->code =
            tb_fail(&move->error, TB_ENO_MEMORY, -1, 0, "no memory for the places of %u pieces", bucket->chunk_count);
        return false;
    }
    move->places_wait.move = move;
    for (uint32_t i = 0; i < bucket->chunk_count; i++) {
        const tb_wire_end *end = tb_import_end(import, stage, bucket->first_chunk + i);
        if (end->descriptor == TB_NONE) {
            const tb_ucx_region *region = &move->source->regions[end->region];
            get(&move->places_wait, region,
                region->base + import->regions[end->region].pieces_at + end->at * sizeof(uint64_t),
                (tb_ucx_place){&move->places[i], NULL, TB_UCS_MEMORY_HOST}, sizeof(uint64_t));
        }
    }
    return true;
}

static bool fails(const tb_ucx_move *move) {
    return move->code != TB_OK || move->status != TB_UCS_OK;
}

/* A bucket that needs a slot of the GPU waits until it is free. */
static bool has_slot(tb_ucx_move *move) {
    const tb_ucx_unpack *unpack = move->source->unpack;
    uint32_t slot = unpack == NULL ? TB_NONE : unpack->slot_of[move->group];
    if (slot == TB_NONE || move->slot != TB_NONE) {
        return true;
    }
    if (unpack->bounce->taken[slot]) {
        return false;
    }
    unpack->bounce->taken[slot] = true;
    move->slot = slot;
    return true;
}

/* True if something was asked for. */
static bool ask(tb_ucx *ucx, tb_ucx_move *move) {
    tb_error error;
    if (move->chunk == move->chunk_end || fails(move) || move->stopped_at != 0) {
        return false;
    }
    enum tb_ucx_reached reached = tb_ucx_reach(move->source, &error);
    if (reached == TB_UCX_UNREACHED) {
        move->code = tb_fail(&move->error, TB_EPEER_LOST, move->source->rank, 0, "%s", error.message);
    }
    bool ready = reached == TB_UCX_REACHED && has_slot(move)
                 && (move->places != NULL || (has_room(ucx, move->source) && ask_places(move)));
    if (!ready) {
        return false;
    }
    bool some = false;
    while (move->places_wait.gets == 0 && move->chunk < move->chunk_end && !fails(move) && ask_some(ucx, move)) {
        some = true;
    }
    return some;
}

/* ---- putting --------------------------------------------------------------------------------------------- */

static void drop_step(tb_ucx *ucx, tb_ucx_move *move) {
    tb_ucx_step *step = move->first;
    move->first = step->next;
    move->last = move->first == NULL ? &move->first : move->last;
    move->source->bytes -= step->bytes;
    ucx->bytes -= step->bytes;
    if (step->slot != NULL) {
        ucx->free_slots[ucx->free_slot_count++] = step->slot;
    }
    free(step);
}

/* True if something was put. */
static bool put(tb_ucx *ucx, tb_ucx_move *move) {
    bool some = false;
    while (move->first != NULL && move->first->wait.gets == 0 && !fails(move) && move->stopped_at == 0) {
        tb_ucx_step *step = move->first;
        if (move->source->unpack != NULL) {
            /* Its kernels bring it on, once all of the bucket is there. */
        } else if (step->slot == NULL) {
            tb_flow_moved(&move->flow, step->elements);
        } else {
            tb_flow_move(&move->flow, &step->from, step->elements);
        }
        drop_step(ucx, move);
        some = true;
    }
    return some;
}

/* ---- buckets --------------------------------------------------------------------------------------------- */

static void free_move(tb_ucx_move *move) {
    if (move->slot != TB_NONE) {
        move->source->unpack->bounce->taken[move->slot] = false;
    }
    free(move->places);
    free(move);
}

static void is_unpacked(tb_ucx *ucx, tb_ucx_task *task) {
    (void)ucx;
    free_move((tb_ucx_move *)task);
}

/* In the thread of the GPU, before the pull ends: the source is there until what is posted here is done. */
static void unpacked(void *argument) {
    tb_ucx_move *move = argument;
    move->task.run = is_unpacked;
    tb_ucx_post(move->source->ucx, &move->task);
}

static bool is_done(const tb_ucx_move *move) {
    bool all = move->source->unpack == NULL ? move->flow.left == 0
                                            : move->chunk == move->chunk_end && move->first == NULL;
    return all && !fails(move);
}

static void end(tb_ucx *ucx, tb_ucx_move *move) {
    if (is_done(move) && move->slot != TB_NONE) {
        const tb_ucx_unpack *unpack = move->source->unpack;
        tb_device_submit_then(ucx->device, move->pull, &unpack->moves, move->group, unpacked, move);
        return;
    }
    while (move->first != NULL) {
        drop_step(ucx, move);
    }
    int32_t code = move->code;
    if (code == TB_OK && move->status != TB_UCS_OK) {
        bool canceled = move->status == TB_UCS_CANCELED && move->source->why != TB_UCS_OK;
        tb_ucs_status status = canceled ? move->source->why : move->status;
        code = tb_ucx_fail(ucx->api, status, status == TB_UCS_NO_MEMORY ? TB_ENO_MEMORY : TB_EPEER_LOST,
                           move->source->rank, &move->error, "memory of rank %d cannot be read", move->source->rank);
    }
    tb_pull *pull = move->pull;
    tb_error error = move->error;
    free_move(move);
    tb_pull_end(pull, code, error.rank, 0, code == TB_OK ? NULL : error.message);
}

/* What was given up is waited for, and, if it takes long, cut off. */
static void look_at_end(tb_ucx_move *move) {
    if (move->stopped_at == 0 && tb_pull_stopped(move->pull)) {
        move->stopped_at = tb_now();
    }
    if (move->gets == 0 || (move->stopped_at == 0 && !fails(move) && !move->source->failed)) {
        return;
    }
    uint64_t patience = (uint64_t)move->pull->transfer->session->options.quiesce_ms * 1000000 / 4;
    if (fails(move) || move->source->failed || tb_now() - move->stopped_at >= patience) {
        if (move->code != TB_OK && move->source->code == TB_OK) {
            move->source->code = move->code;
            move->source->error = move->error;
        }
        tb_ucx_cut(move->source);
    }
}

bool tb_ucx_moves_go_on(tb_ucx *ucx) {
    bool some = false;
    for (tb_ucx_move **at = &ucx->moves; *at != NULL;) {
        tb_ucx_move *move = *at;
        look_at_end(move);
        some = put(ucx, move) || some;
        some = ask(ucx, move) || some;
        some = put(ucx, move) || some;
        if (move->gets == 0 && (is_done(move) || fails(move) || move->stopped_at != 0)) {
            *at = move->next;
            ucx->moves_end = *at == NULL ? at : ucx->moves_end;
            end(ucx, move);
            some = true;
        } else {
            at = &move->next;
        }
    }
    return some;
}

static void begin(tb_ucx *ucx, tb_ucx_task *task) {
    tb_ucx_move *move = (tb_ucx_move *)task;
    *ucx->moves_end = move;
    ucx->moves_end = &move->next;
    const tb_transfer *transfer = move->pull->transfer;
    const tb_bucket *bucket = &transfer->program.buckets[move->pull->bucket];
    move->chunk = bucket->first_chunk;
    move->chunk_end = bucket->first_chunk + bucket->chunk_count;
    move->slot = TB_NONE;
    if (move->source->unpack != NULL) {
        uint8_t stage = tb_bucket_channel(&transfer->program, move->pull->bucket)->stage;
        move->group =
            move->source->unpack->first_group[stage] + tb_bucket_sequence(&transfer->program, move->pull->bucket);
    } else if (!tb_pull_stopped(move->pull)) {
        tb_flow_start(&move->flow, &transfer->places, move->pull->bucket, true);
    }
}

void tb_ucx_submit(tb_pull *pull) {
    tb_ucx_move *move = calloc(1, sizeof *move);
    if (move == NULL) {
        tb_pull_end(pull, TB_ENO_MEMORY, pull->transfer->session->options.rank, 0, "no memory for a bucket to be read");
        return;
    }
    move->task.run = begin;
    move->pull = pull;
    move->source = pull->import->opened;
    move->last = &move->first;
    tb_ucx_post(move->source->ucx, &move->task);
}
