/*
 * What a thread moves within this rank: copies to itself, its own contributions, and contributions out of
 * their slots.
 */
#include "round.h"

bool tb_round_take_job(tb_session *session, tb_job *job) {
    for (tb_graph *graph = session->graphs; graph != NULL; graph = graph->next) {
        if (graph->jobs.count == 0) {
            continue;
        }
        job->graph = graph;
        job->bucket = tb_heap_pop(&graph->jobs);
        job->moved = 0;
        graph->buckets[job->bucket] = TB_BUCKET_MOVING;
        graph->active++;
        if (graph->slot_of[job->bucket] == TB_NONE) {
            tb_flow_start_local(&job->flow, &job->source, &graph->places, job->bucket);
        } else {
            tb_flow_start(&job->flow, &graph->places, job->bucket, true);
        }
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

bool tb_job_slice(tb_job *job, uint64_t limit) {
    if (atomic_load(&job->graph->stop)) {
        return false;
    }
    if (job->graph->slot_of[job->bucket] != TB_NONE) {
        return fold_slot(job, limit);
    }
    uint64_t left = job->flow.left;
    bool more = tb_flow_local(&job->flow, &job->source, limit);
    atomic_fetch_add_explicit(&job->graph->bytes_copied, left - job->flow.left, memory_order_relaxed);
    return more;
}

void tb_round_job_done(tb_job *job) {
    tb_graph *graph = job->graph;
    job->graph = NULL;
    if (!graph->failing) {
        if (tb_bucket_channel(&graph->program, job->bucket)->stage == 0) {
            tb_folds_done(graph, job->bucket);
        } else {
            tb_folds_read(graph, job->bucket);
            tb_round_bucket_done(graph, job->bucket);
            graph->locals_left--;
        }
    }
    tb_round_release(graph);
}
