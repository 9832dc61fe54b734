#include "round/round.h"

#include <stdio.h>
#include <string.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "carriers/nccl/nccl_rounds.h"

static void reset_channels(tb_graph *graph) {
    const tb_program_header *header = graph->program.header;
    for (uint32_t i = 0; i < header->channel_count; i++) {
        tb_channel_state *state = &graph->channels[i];
        /* A target that began before this rank, or is even ahead of it, has granted already. */
        bool granted =
            graph->program.channels[i].direction == TB_SEND && state->granted_round >= graph->round;
        state->granted = granted ? state->granted : 0;
        state->in_flight = 0;
        state->done = 0;
        state->finished = false;
        state->announce = false;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_side *side = &graph->sides[i];
        side->ready.count = 0;
        side->unfinished = 0;
        side->exposed = 0;
        for (int stage = 0; stage < TB_STAGES; stage++) {
            side->unfinished += (side->send[stage] != TB_NONE) + (side->receive[stage] != TB_NONE);
        }
    }
}

static void reset(tb_graph *graph) {
    const tb_program *program = &graph->program;
    reset_channels(graph);
    memset(graph->buckets, TB_BUCKET_IDLE, program->header->bucket_count);
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        graph->waits[b] = program->buckets[b].dependency_count;
    }
    graph->jobs.count = 0;
    graph->offer.count = 0;
    graph->receives_left = program->receive_channels;
    graph->sends_left = program->send_channels;
    graph->locals_left = program->local_buckets;
    memset(graph->turns, 0, sizeof graph->turns);
    tb_folds_reset(graph);
    graph->staging.high = 0;
    atomic_store(&graph->bytes_sent, 0);
    atomic_store(&graph->bytes_received, 0);
    atomic_store(&graph->bytes_copied, 0);
}

/* A round that can not succeed any more when it begins. True where it failed. */
static bool fail_at_once(tb_graph *graph) {
    if (graph->aborted_round >= graph->round) {
        tb_error why = graph->aborted;
        tb_round_fail(graph, why.code, why.rank, 0, why.message);
        return true;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].gone) {
            char message[64];
            int32_t rank = graph->sides[i].peer->rank;
            snprintf(message, sizeof message, "rank %d went away after it was prepared", rank);
            tb_round_fail(graph, TB_EPEER_LOST, rank, 0, message);
            return true;
        }
    }
    return false;
}

void tb_round_start(tb_graph *graph, uint64_t round, uint64_t deadline) {
    graph->state = TB_GRAPH_RUNNING;
    graph->round = round;
    graph->deadline = deadline;
    graph->started = tb_now();
    graph->failing = false;
    atomic_store(&graph->stop, false);
    reset(graph);
    tb_session_timer(graph->session, deadline);
    if (fail_at_once(graph)) {
        return;
    }
    if (graph->waves != NULL) {
        tb_nccl_round_start(graph);
    } else if (graph->leader >= 0) {
        tb_nccl_say_begin(graph);
    }
    if (graph->failing || (graph->waves != NULL && !graph->waves->mixed)) {
        return;
    }
    const tb_program *program = &graph->program;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_channel *channel = tb_bucket_channel(program, b);
        bool starts = channel->direction == TB_SEND || (channel->direction == TB_LOCAL && channel->stage > 0);
        if (starts && graph->waits[b] == 0) {
            tb_round_ready(graph, b);
        }
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].ready.count > 0) {
            tb_peer_kick(graph->sides[i].peer);
        }
    }
    tb_pulls_say(graph);
    tb_pulls_grant(graph);
    tb_folds_allow(graph);
    tb_round_grant_pooled(graph);
    tb_round_grant_turns(graph, 1);
    tb_round_grant_turns(graph, 2);
    tb_round_check(graph);
}

static void finish(tb_graph *graph) {
    tb_event event = {
        .kind = TB_EVENT_ROUND,
        .graph = graph->handle,
        .round = graph->round,
        .bytes_sent = atomic_load(&graph->bytes_sent),
        .bytes_received = atomic_load(&graph->bytes_received),
        .bytes_copied = atomic_load(&graph->bytes_copied),
        .nanoseconds = tb_now() - graph->started,
        .staging_high_water = graph->staging.high,
    };
    if (graph->failing) {
        event.error = graph->error;
    }
    graph->state = TB_GRAPH_READY;
    graph->deadline = 0;
    graph->quiet_deadline = 0;
    tb_session_event_reserved(graph->session, &event, &graph->reserved);
}

void tb_round_check(tb_graph *graph) {
    if (graph->state != TB_GRAPH_RUNNING || graph->active > 0) {
        return;
    }
    bool done = graph->receives_left == 0 && graph->sends_left == 0 && graph->locals_left == 0;
    if (graph->failing || done) {
        finish(graph);
    }
}

void tb_round_release(tb_graph *graph) {
    graph->active--;
    tb_round_check(graph);
}

void tb_round_fail(tb_graph *graph, int32_t code, int32_t rank, int os_errno, const char *message) {
    if (graph->state != TB_GRAPH_RUNNING || graph->failing) {
        return;
    }
    graph->failing = true;
    atomic_store(&graph->stop, true);
    tb_fail(&graph->error, code, rank, os_errno, "%s", message);
    if (graph->aborted_round < graph->round) {
        graph->aborted_round = graph->round;
        graph->aborted = graph->error;
    }
    graph->jobs.count = 0;
    for (uint32_t i = 0; i < graph->side_count; i++) {
        graph->sides[i].ready.count = 0;
        tb_graph_say_failure(&graph->sides[i], TB_FRAME_ABORT, graph->round, &graph->error);
    }
    graph->session->stale_pulls += graph->pulling;
    tb_pulls_await_quiet(graph);
    if (graph->waves != NULL) {
        tb_nccl_round_failed(graph);
    }
    tb_threads_sweep(graph->session);
    tb_round_check(graph);
}

void tb_round_bucket_done(tb_graph *graph, uint32_t bucket) {
    const tb_program *program = &graph->program;
    graph->buckets[bucket] = TB_BUCKET_DONE;
    for (uint32_t d = program->first_dependent[bucket]; d < program->first_dependent[bucket + 1]; d++) {
        uint32_t dependent = program->dependents[d];
        if (--graph->waits[dependent] == 0) {
            tb_round_ready(graph, dependent);
            if (tb_bucket_channel(program, dependent)->direction == TB_SEND) {
                tb_peer_kick(graph->channels[program->buckets[dependent].channel].side->peer);
            }
        }
    }
    tb_pulls_say(graph);
}

void tb_round_offer(tb_graph *graph, uint32_t bucket) {
    tb_heap_push(&graph->jobs, bucket);
    tb_threads_offer_job(graph->session);
}
