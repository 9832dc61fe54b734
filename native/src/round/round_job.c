/*
 * What a thread of this rank moves: copies to itself, its own contributions, contributions out of their slots, and
 * buckets that it pulls. The session's lock is held when a job is taken and given back, and not while it moves.
 */
#include <stdlib.h>

#include "round/carrier.h"
#include "base/error.h"
#include "round/round.h"
#include "round/round_fold.h"
#include "round/round_job.h"
#include "round/select.h"
#include "round/invariants.h"

static void start(tb_transfer *transfer, tb_job *job) {
    const tb_channel *channel = tb_bucket_channel(&transfer->program, job->bucket);
    job->exchange = NULL;
    if (tb_way_of(transfer, transfer->program.buckets[job->bucket].channel) == TB_WAY_JOINT) {
        tb_touch_begin(transfer); /* it is in memory of the carrier, which folds it */
        return;
    }
    if (channel->direction == TB_RECEIVE && transfer->slot_of[job->bucket] == TB_NONE) {
        job->exchange = transfer->channels[transfer->program.buckets[job->bucket].channel].exchange;
        job->started = false;
        tb_pull_begin(transfer, job->exchange);
        tb_flow_start(&job->flow, &transfer->places, job->bucket, true);
        return;
    }
    tb_touch_begin(transfer);
    if (transfer->slot_of[job->bucket] == TB_NONE) {
        tb_flow_start_local(&job->flow, &job->source, &transfer->places, job->bucket);
    } else {
        tb_flow_start(&job->flow, &transfer->places, job->bucket, true);
    }
}

bool tb_round_take_job(tb_session *session, tb_job *job) {
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        if (transfer->jobs.count == 0) {
            continue;
        }
        job->transfer = transfer;
        job->bucket = tb_heap_pop(&transfer->jobs);
        job->moved = 0;
        tb_bucket_become(transfer, job->bucket, TB_BUCKET_MOVING);
        start(transfer, job);
        return true;
    }
    return false;
}

/* A contribution that was staged goes on from its slot as if it came from its peer now. */
static bool fold_slot(tb_job *job, uint64_t limit) {
    tb_transfer *transfer = job->transfer;
    uint64_t bytes = job->flow.left < limit ? job->flow.left : limit;
    const uint8_t *slot = transfer->slots + transfer->slot_of[job->bucket] * transfer->program.slot_bytes;
    tb_flow_put(&job->flow, slot + job->moved, bytes);
    job->moved += bytes;
    return job->flow.left > 0;
}

/* A source that cannot be read ends the round. */
static bool pull(tb_job *job, uint64_t limit) {
    tb_transfer *transfer = job->transfer;
    tb_error error;
    uint64_t left = job->flow.left;
    enum tb_moved moved = job->exchange->import->carrier->move(job, limit, &error);
    atomic_fetch_add_explicit(&transfer->bytes_received, left - job->flow.left, memory_order_relaxed);
    if (moved == TB_MOVED_NOT) {
        pthread_mutex_lock(&transfer->session->lock);
        tb_round_fail(transfer, error.code, error.rank, error.os_errno, error.message);
        pthread_mutex_unlock(&transfer->session->lock);
    }
    return moved == TB_MOVED_PART;
}

/* Its bytes were counted when they came. */
static bool came_jointly(const tb_job *job) {
    return tb_way_of(job->transfer, job->transfer->program.buckets[job->bucket].channel) == TB_WAY_JOINT;
}

bool tb_job_submit(tb_job *job) {
    tb_transfer *transfer = job->transfer;
    void (*submit)(tb_pull *) = transfer->mover;
    if (job->exchange != NULL) {
        submit = job->exchange->import->carrier->submit;
    } else if (came_jointly(job)) {
        submit = transfer->joint.carrier->submit;
    } else if (transfer->slot_of[job->bucket] != TB_NONE) {
        return false; /* it came over a stream */
    }
    if (submit == NULL) {
        return false;
    }
    tb_pull *pull = malloc(sizeof *pull);
    if (pull == NULL) {
        pthread_mutex_lock(&transfer->session->lock);
        tb_round_fail(transfer, TB_ENO_MEMORY, transfer->session->options.rank, 0,
                      "no memory for a bucket to be pulled");
        tb_round_job_dropped(job);
        pthread_mutex_unlock(&transfer->session->lock);
        return true;
    }
    *pull = (tb_pull){.transfer = transfer,
                      .exchange = job->exchange,
                      .import = job->exchange == NULL ? NULL : job->exchange->import,
                      .bucket = job->bucket,
                      .bytes = came_jointly(job) ? 0 : transfer->program.buckets[job->bucket].bytes};
    job->transfer = NULL;
    submit(pull);
    return true;
}

bool tb_job_slice(tb_job *job, uint64_t limit) {
    if (atomic_load(&job->transfer->stop)) {
        return false;
    }
    if (job->exchange != NULL) {
        return pull(job, limit);
    }
    if (job->transfer->slot_of[job->bucket] != TB_NONE) {
        return fold_slot(job, limit);
    }
    uint64_t left = job->flow.left;
    bool more = tb_flow_local(&job->flow, &job->source, limit);
    atomic_fetch_add_explicit(&job->transfer->bytes_copied, left - job->flow.left, memory_order_relaxed);
    return more;
}

void tb_round_moved(tb_transfer *transfer, uint32_t bucket) {
    if (!transfer->failing) {
        if (tb_bucket_channel(&transfer->program, bucket)->stage == 0) {
            tb_folds_done(transfer, bucket);
        } else {
            tb_folds_read(transfer, bucket);
            tb_round_bucket_done(transfer, bucket);
            transfer->locals_left--;
        }
    }
    tb_round_release(transfer);
}

void tb_round_job_done(tb_job *job) {
    tb_transfer *transfer = job->transfer;
    job->transfer = NULL;
    if (job->exchange != NULL) {
        tb_pull_finish(transfer, job->exchange, job->bucket);
    } else {
        tb_round_moved(transfer, job->bucket);
    }
}

void tb_round_job_dropped(tb_job *job) {
    tb_transfer *transfer = job->transfer;
    job->transfer = NULL;
    if (job->exchange != NULL) {
        tb_pull_over(transfer, job->exchange);
    } else {
        tb_round_release(transfer);
    }
}
