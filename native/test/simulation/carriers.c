/*
 * Two carriers that pull: one moves in slices, one is handed pulls and ends them in any order. Both look into the source's
 * session when they touch its memory: it must have exposed it, in this very round.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "flow/flow_parts.h"
#include "sim.h"
#include "kernels/dtype.h"
#include "round/carrier.h"

/* Both register memory, as carriers of network cards do: what one says of a region is what it has made of it. */
static int32_t add(tb_session *session, const tb_region *region, void **state, tb_error *err) {
    (void)session;
    uint64_t *address = malloc(sizeof *address);
    SIM_CHECK(address != NULL && err != NULL, "no memory for the state of a region");
    *address = region->address;
    *state = address;
    the_sim->registered++;
    return TB_OK;
}

static void take(tb_session *session, const tb_region *region, void *state) {
    SIM_CHECK(state != NULL && *(uint64_t *)state == region->address, "rank %d takes back what it has not registered",
              session->options.rank);
    free(state);
    the_sim->registered--;
}

static int32_t say(const tb_region *region, uint32_t number, void *blob, uint32_t *bytes) {
    const uint64_t *address = region->carrier_state == NULL ? NULL : region->carrier_state[number];
    SIM_CHECK(address != NULL && *address == region->address, "a region is exported that the carrier was not shown");
    memcpy(blob, address, sizeof *address);
    *bytes = sizeof *address;
    return TB_OK;
}

static int32_t describe_moved(tb_session *session, const tb_region *region, uint32_t number, void *blob,
                              uint32_t *bytes, tb_error *err) {
    (void)session;
    (void)number;
    (void)err;
    return say(region, SIM_MOVES, blob, bytes);
}

static int32_t describe_submitted(tb_session *session, const tb_region *region, uint32_t number, void *blob,
                                  uint32_t *bytes, tb_error *err) {
    (void)session;
    (void)number;
    (void)err;
    return say(region, SIM_SUBMITS, blob, bytes);
}

static int32_t open_import(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    (void)exchange;
    uint64_t *bases = calloc(import->region_count + 1, sizeof *bases);
    for (uint32_t i = 0; i < import->region_count; i++) {
        memcpy(&bases[i], tb_import_blob(import, i), sizeof bases[i]);
    }
    import->opened = bases;
    /* Now and then a machine does not let it, and the stream has to do. */
    return sim_random(40) == 0 ? tb_fail(err, TB_EUNSUPPORTED, import->rank, 0, "not allowed here") : TB_OK;
}

static void close_import(tb_import *import) {
    free(import->opened);
    import->opened = NULL;
}

/* The source's memory may be read: its round is under way, and it has said so. */
static bool may_read(const tb_job *job) {
    const tb_import *import = job->exchange->import;
    const sim_rank *source = &the_sim->ranks[import->rank];
    if (!source->alive) {
        return false;
    }
    int32_t own = import->session->options.rank;
    const tb_transfer *transfer = source->transfer;
    if (transfer != NULL && transfer->quarantined) {
        return true; /* it is left to those who read it */
    }
    SIM_CHECK(transfer != NULL && transfer->state == TB_TRANSFER_RUNNING, "rank %d reads of rank %d, whose round is over",
              own, import->rank);
    SIM_CHECK(transfer->round == job->transfer->round, "rank %d reads in round %d of rank %d, which is in round %d", own,
              (int)job->transfer->round, import->rank, (int)transfer->round);
    uint32_t exposed = 0;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        exposed += transfer->exchanges[i].peer->rank == own ? transfer->exchanges[i].exposed : 0;
    }
    SIM_CHECK(exposed > 0, "rank %d reads of rank %d, which exposes nothing to it", own, import->rank);
    return true;
}

static void start_chunk(tb_job *job) {
    const tb_import *import = job->exchange->import;
    const uint64_t *bases = import->opened;
    uint8_t stage = tb_bucket_channel(&job->transfer->program, job->bucket)->stage;
    const tb_wire_end *end = tb_import_end(import, stage, job->flow.chunk);
    const tb_wire_region *region = &import->regions[end->region];
    uint8_t *base = (uint8_t *)(uintptr_t)bases[end->region];
    if (end->descriptor == TB_NONE) {
        uint64_t bytes = tb_flow_chunk(&job->flow)->elements * tb_dtype_size(end->dtype);
        tb_cursor_start_row(&job->source, base + ((const uint64_t *)(base + region->pieces_at))[end->at], bytes);
    } else {
        tb_cursor_start(&job->source, base + end->at, import->words + end->descriptor);
    }
}

static enum tb_moved move_some(tb_job *job, uint64_t limit, tb_error *err) {
    uint64_t until = job->flow.left > limit ? job->flow.left - limit : 0;
    while (job->flow.left > until) {
        if (!may_read(job)) {
            tb_fail(err, TB_EPEER_LOST, job->exchange->import->rank, 0, "its process is gone");
            return TB_MOVED_NOT;
        }
        if (!job->started) {
            start_chunk(job);
        }
        uint64_t elements = tb_least(job->flow.chunk_left / job->flow.item, 1 + limit / job->flow.item);
        job->started = !tb_flow_move(&job->flow, &job->source, elements);
    }
    return job->flow.left > 0 ? TB_MOVED_PART : TB_MOVED_ALL;
}

static enum tb_moved move(tb_job *job, uint64_t limit, tb_error *err) {
    SIM_CHECK(!atomic_load(&job->transfer->stop), "a carrier moves in a round that was stopped");
    return move_some(job, limit, err);
}

static void submit(tb_pull *pull) {
    SIM_CHECK(the_sim->pull_count < SIM_PULLS, "more pulls are under way than there are buckets");
    tb_job *job = calloc(1, sizeof *job);
    job->transfer = pull->transfer;
    job->exchange = pull->exchange;
    job->bucket = pull->bucket;
    tb_flow_start(&job->flow, &pull->transfer->places, pull->bucket, true);
    the_sim->launched[the_sim->pull_count] = false;
    the_sim->pulls[the_sim->pull_count] = job;
    the_sim->ends[the_sim->pull_count++] = pull;
}

static void forget(uint32_t index) {
    free(the_sim->pulls[index]);
    the_sim->pull_count--;
    the_sim->pulls[index] = the_sim->pulls[the_sim->pull_count];
    the_sim->ends[index] = the_sim->ends[the_sim->pull_count];
    the_sim->launched[index] = the_sim->launched[the_sim->pull_count];
}

/* As a kernel: whoever launches it has looked at stop, and it goes to its end whatever happens meanwhile. */
void sim_pull(uint32_t index) {
    tb_pull *pull = the_sim->ends[index];
    tb_error error = {.code = TB_OK};
    enum tb_moved moved = TB_MOVED_NOT;
    int32_t own = pull->transfer->session->options.rank;
    if (!the_sim->launched[index] && !tb_pull_stopped(pull)) {
        the_sim->launched[index] = true;
        return;
    }
    if (!the_sim->launched[index]) {
        tb_fail(&error, TB_ECANCELLED, own, 0, "its round failed before it was moved");
    } else {
        moved = move_some(the_sim->pulls[index], 1 + sim_random(400), &error);
    }
    if (moved != TB_MOVED_PART) {
        forget(index);
        tb_pull_end(pull, moved == TB_MOVED_ALL ? TB_OK : error.code, error.rank, 0, error.message);
    }
}

void sim_forget_pulls(const tb_session *session) {
    for (uint32_t i = the_sim->pull_count; i-- > 0;) {
        if (the_sim->ends[i]->transfer->session == session) {
            free(the_sim->ends[i]);
            forget(i);
        }
    }
}

static const tb_carrier stream = {
    .number = SIM_STREAM,
    .name = "stream",
    .way = TB_WAY_STREAM,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED,
    .checksums = true,
};

static const tb_carrier moves = {
    .number = SIM_MOVES,
    .name = "moves",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED,
    .region_add = add,
    .region_remove = take,
    .describe = describe_moved,
    .open = open_import,
    .close = close_import,
    .move = move,
};

static const tb_carrier submits = {
    .number = SIM_SUBMITS,
    .name = "submits",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED,
    .region_add = add,
    .region_remove = take,
    .describe = describe_submitted,
    .open = open_import,
    .close = close_import,
    .submit = submit,
};

const tb_carrier *const sim_carriers[] = {&submits, &moves, &stream, NULL};
