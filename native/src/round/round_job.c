/*
 * What a thread of this rank moves: copies to itself, its own contributions, contributions out of their
 * slots, and buckets that it pulls.
 */
#include <stdlib.h>

#include "carriers/carrier.h"
#include "base/error.h"
#include "round/round.h"

static void start(tb_graph *graph, tb_job *job) {
    const tb_channel *channel = tb_bucket_channel(&graph->program, job->bucket);
    job->side = NULL;
    if (tb_is_by_nccl(graph, graph->program.buckets[job->bucket].channel)) {
        graph->active++; /* it is in memory of the device, which folds it */
        return;
    }
    if (channel->direction == TB_RECEIVE && graph->slot_of[job->bucket] == TB_NONE) {
        job->side = graph->channels[graph->program.buckets[job->bucket].channel].side;
        job->started = false;
        tb_pull_begin(graph, job->side);
        tb_flow_start(&job->flow, &graph->places, job->bucket, true);
        return;
    }
    graph->active++;
    if (graph->slot_of[job->bucket] == TB_NONE) {
        tb_flow_start_local(&job->flow, &job->source, &graph->places, job->bucket);
    } else {
        tb_flow_start(&job->flow, &graph->places, job->bucket, true);
    }
}

bool tb_round_take_job(tb_session *session, tb_job *job) {
    for (tb_graph *graph = session->graphs; graph != NULL; graph = graph->next) {
        if (graph->jobs.count == 0) {
            continue;
        }
        job->graph = graph;
        job->bucket = tb_heap_pop(&graph->jobs);
        job->moved = 0;
        graph->buckets[job->bucket] = TB_BUCKET_MOVING;
        start(graph, job);
        return true;
    }
    return false;
}

/* A contribution that was staged goes on from its slot as if it came from its peer now. */
static bool fold_slot(tb_job *job, uint64_t limit) {
    tb_graph *graph = job->graph;
    uint64_t bytes = job->flow.left < limit ? job->flow.left : limit;
    const uint8_t *slot = graph->slots + graph->slot_of[job->bucket] * graph->program.slot_bytes;
    tb_flow_put(&job->flow, slot + job->moved, bytes);
    job->moved += bytes;
    return job->flow.left > 0;
}

/* A source that can not be read ends the round. */
static bool pull(tb_job *job, uint64_t limit) {
    tb_graph *graph = job->graph;
    tb_error error;
    uint64_t left = job->flow.left;
    enum tb_moved moved = job->side->import->carrier->move(job, limit, &error);
    atomic_fetch_add_explicit(&graph->bytes_received, left - job->flow.left, memory_order_relaxed);
    if (moved == TB_MOVED_NOT) {
        pthread_mutex_lock(&graph->session->lock);
        tb_round_fail(graph, error.code, error.rank, error.os_errno, error.message);
        pthread_mutex_unlock(&graph->session->lock);
    }
    return moved == TB_MOVED_PART;
}

/* Its bytes were counted when they came. */
static bool came_by_nccl(const tb_job *job) {
    return tb_is_by_nccl(job->graph, job->graph->program.buckets[job->bucket].channel);
}

bool tb_job_submit(tb_job *job) {
    tb_graph *graph = job->graph;
    const tb_carrier *carrier = graph->mover;
    if (job->side != NULL) {
        carrier = job->side->import->carrier;
    } else if (graph->slot_of[job->bucket] != TB_NONE) {
        return false; /* it came over a stream */
    }
    if (carrier == NULL || carrier->submit == NULL) {
        return false;
    }
    tb_pull *pull = malloc(sizeof *pull);
    if (pull == NULL) {
        pthread_mutex_lock(&graph->session->lock);
        tb_round_fail(graph, TB_ENO_MEMORY, graph->session->options.rank, 0, "a bucket to be pulled");
        tb_round_job_dropped(job);
        pthread_mutex_unlock(&graph->session->lock);
        return true;
    }
    *pull = (tb_pull){.graph = graph,
                      .side = job->side,
                      .import = job->side == NULL ? NULL : job->side->import,
                      .bucket = job->bucket,
                      .wave = tb_bucket_channel(&graph->program, job->bucket)->wave,
                      .bytes = came_by_nccl(job) ? 0 : graph->program.buckets[job->bucket].bytes};
    job->graph = NULL;
    carrier->submit(pull);
    return true;
}

bool tb_job_slice(tb_job *job, uint64_t limit) {
    if (atomic_load(&job->graph->stop)) {
        return false;
    }
    if (job->side != NULL) {
        return pull(job, limit);
    }
    if (job->graph->slot_of[job->bucket] != TB_NONE) {
        return fold_slot(job, limit);
    }
    uint64_t left = job->flow.left;
    bool more = tb_flow_local(&job->flow, &job->source, limit);
    atomic_fetch_add_explicit(&job->graph->bytes_copied, left - job->flow.left, memory_order_relaxed);
    return more;
}

void tb_round_moved(tb_graph *graph, uint32_t bucket) {
    if (!graph->failing) {
        if (tb_bucket_channel(&graph->program, bucket)->stage == 0) {
            tb_folds_done(graph, bucket);
        } else {
            tb_folds_read(graph, bucket);
            tb_round_bucket_done(graph, bucket);
            graph->locals_left--;
        }
    }
    tb_round_release(graph);
}

void tb_round_job_done(tb_job *job) {
    tb_graph *graph = job->graph;
    job->graph = NULL;
    if (job->side != NULL) {
        tb_pull_finish(graph, job->side, job->bucket);
    } else {
        tb_round_moved(graph, job->bucket);
    }
}

void tb_round_job_dropped(tb_job *job) {
    tb_graph *graph = job->graph;
    job->graph = NULL;
    if (job->side != NULL) {
        tb_pull_over(graph, job->side);
    } else {
        tb_round_release(graph);
    }
}
