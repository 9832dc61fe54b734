/* One round on a communicator, step by step: in the device's thread, without the session's lock. */
#include "round/carrier.h"
#include "base/error.h"
#include "carriers/nccl/nccl.h"
#include "round/round.h"
#include "round/round_receive.h"
#include "round/round_fold.h"
#include "round/invariants.h"

/* ---- a step --------------------------------------------------------------------------------------------- */

static int32_t wait_for(tb_nccl_set *set, tb_cu_stream stream, tb_cu_event event, tb_error *err) {
    TB_CUDA_TRY(set->nccl->worker->api, cuStreamWaitEvent(stream, event, 0), err);
    return TB_OK;
}

static int32_t record(tb_nccl_set *set, tb_cu_event event, tb_cu_stream stream, tb_error *err) {
    TB_CUDA_TRY(set->nccl->worker->api, cuEventRecord(event, stream), err);
    return TB_OK;
}

static tb_nccl_slot *slot_of(tb_nccl_run *run, uint32_t step) {
    return &run->set->slots[step % run->plan->depth];
}

/* What is sent is ready in the stream of sends and receives once this was put there. */
static int32_t pack(tb_nccl_run *run, uint32_t index, tb_error *err) {
    tb_nccl_set *set = run->set;
    const tb_nccl_steps *plan = run->plan;
    const tb_nccl_step *step = &plan->steps[index];
    tb_nccl_slot *slot = slot_of(run, index);
    int32_t code = TB_OK;
    if (step->waits && !plan->mixed) {
        code = wait_for(set, set->packing, slot_of(run, index - 1)->unpacked, err);
    }
    if (code == TB_OK && step->pack_count > 0) {
        code = tb_cuda_moves_launch(&plan->moves, set->nccl->worker, step->pack, 1, set->packing, err);
    }
    if (code == TB_OK && (step->waits || step->pack_count > 0)) {
        code = record(set, slot->packed, set->packing, err);
    }
    slot->step = index;
    return code;
}

/* A rank of the session as one of the communicator. */
static int peer_in(const tb_nccl_set *set, int32_t rank) {
    uint32_t low = 0;
    uint32_t high = set->rank_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        *(set->ranks[middle] <= rank ? &low : &high) = middle;
    }
    return (int)low;
}

static tb_nccl_result put_ops(tb_nccl_run *run, const tb_nccl_step *step) {
    tb_nccl_set *set = run->set;
    const tb_nccl_api *api = set->nccl->api;
    tb_nccl_result result = api->ncclGroupStart();
    for (uint32_t i = step->first_op; i < step->first_op + step->op_count && result == TB_NCCL_SUCCESS; i++) {
        const tb_nccl_op *op = &run->plan->ops[i];
        int peer = peer_in(set, op->peer);
        void *at = (void *)(uintptr_t)op->address;
        result = op->sends ? api->ncclSend(at, op->bytes, TB_NCCL_UINT8, peer, set->comm, set->wire)
                           : api->ncclRecv(at, op->bytes, TB_NCCL_UINT8, peer, set->comm, set->wire);
    }
    tb_nccl_result ended = api->ncclGroupEnd();
    return result != TB_NCCL_SUCCESS ? result : ended;
}

/* Receipts may come as soon as this is in its stream. */
static void count_sends(tb_nccl_run *run, const tb_nccl_step *step) {
    tb_transfer *transfer = run->transfer;
    pthread_mutex_lock(&transfer->session->lock);
    for (uint32_t i = step->first_op; i < step->first_op + step->op_count && !transfer->failing; i++) {
        const tb_nccl_op *op = &tb_nccl_run_of(transfer)->plan->ops[i];
        transfer->channels[transfer->program.buckets[op->bucket].channel].done += op->sends;
    }
    pthread_mutex_unlock(&transfer->session->lock);
}

static int32_t launch(tb_nccl_run *run, uint32_t index, tb_error *err) {
    tb_nccl_set *set = run->set;
    const tb_nccl_step *step = &run->plan->steps[index];
    if (step->op_count == 0) {
        return TB_OK;
    }
    int32_t code = TB_OK;
    if (step->waits || step->pack_count > 0) {
        code = wait_for(set, set->wire, slot_of(run, index)->packed, err);
    }
    if (code != TB_OK) {
        return code;
    }
    count_sends(run, step);
    tb_nccl_result result = put_ops(run, step);
    if (result != TB_NCCL_SUCCESS && result != TB_NCCL_IN_PROGRESS) {
        return tb_nccl_fail(set->nccl->api, result, set->comm, err, "sending and receiving");
    }
    set->asking = true;
    return TB_OK;
}

/* Once NCCL has put its kernels into the stream: an event recorded before could stand before them. */
static int32_t unpack(tb_nccl_run *run, uint32_t index, tb_error *err) {
    tb_nccl_set *set = run->set;
    const tb_nccl_steps *plan = run->plan;
    const tb_nccl_step *step = &plan->steps[index];
    tb_nccl_slot *slot = slot_of(run, index);
    int32_t code = record(set, slot->wired, set->wire, err);
    if (code == TB_OK) {
        code = wait_for(set, set->out, slot->wired, err);
    }
    for (uint32_t i = 0; i < step->unpack_count && code == TB_OK; i++) {
        code = tb_cuda_moves_launch(&plan->moves, set->nccl->worker, step->unpack + i, 1, set->out, err);
    }
    return code == TB_OK ? record(set, slot->unpacked, set->out, err) : code;
}

/* ---- what became of it ---------------------------------------------------------------------------------- */

static void count_op(tb_transfer *transfer, const tb_nccl_op *op) {
    atomic_fetch_add_explicit(op->sends ? &transfer->bytes_sent : &transfer->bytes_received, op->bytes,
                              memory_order_relaxed);
    if (!tb_nccl_run_of(transfer)->plan->mixed) {
        tb_bucket_become(transfer, op->bucket, TB_BUCKET_DONE);
    } else if (op->sends) {
        tb_folds_read(transfer, op->bucket);
        tb_round_bucket_done(transfer, op->bucket);
    } else if (tb_bucket_channel(&transfer->program, op->bucket)->stage == 0) {
        tb_pulls_came(transfer, op->bucket); /* and is consumed by its fold */
        return;
    } else {
        tb_round_bucket_done(transfer, op->bucket);
    }
    if (!op->sends) {
        tb_round_consumed(transfer, op->bucket);
    }
}

static void count(tb_nccl_run *run, uint32_t index) {
    tb_transfer *transfer = run->transfer;
    const tb_nccl_steps *plan = tb_nccl_run_of(transfer)->plan;
    const tb_nccl_step *step = &plan->steps[index];
    pthread_mutex_lock(&transfer->session->lock);
    for (uint32_t i = step->first_op; i < step->first_op + step->op_count && !transfer->failing; i++) {
        count_op(transfer, &plan->ops[i]);
    }
    for (uint32_t i = step->first_local; i < step->first_local + step->local_count && !transfer->failing; i++) {
        uint32_t bucket = plan->locals[i];
        tb_bucket_become(transfer, bucket, TB_BUCKET_DONE);
        transfer->locals_left--;
        atomic_fetch_add_explicit(&transfer->bytes_copied, transfer->program.buckets[bucket].bytes,
                                  memory_order_relaxed);
    }
    pthread_mutex_unlock(&transfer->session->lock);
}

/* TB_EBUSY while it is under way. */
static int32_t ask(tb_nccl_set *set, tb_cu_event event, tb_error *err) {
    tb_cu_result result = set->nccl->worker->api->cuEventQuery(event);
    return result == TB_CU_SUCCESS     ? TB_OK
           : result == TB_CU_NOT_READY ? TB_EBUSY
                                       : tb_cuda_fail(set->nccl->worker->api, result, err, "a round");
}

/* ---- all of them ---------------------------------------------------------------------------------------- */

int32_t tb_nccl_run_first(tb_nccl_run *run, tb_error *err) {
    tb_nccl_set *set = run->set;
    const tb_nccl_steps *plan = run->plan;
    int32_t code = TB_OK;
    if (!run->first_launched) {
        if (run->first == NULL) {
            code = tb_cuda_worker_take_event(set->nccl->worker, &run->first, err);
        }
        if (code == TB_OK && plan->steps[0].unpack_count > 0) {
            code = tb_cuda_moves_launch(&plan->moves, set->nccl->worker, plan->steps[0].unpack, 1, set->out, err);
        }
        if (code == TB_OK) {
            code = record(set, run->first, set->out, err);
        }
        run->first_launched = true;
    }
    if (code == TB_OK) {
        code = ask(set, run->first, err);
    }
    if (code == TB_OK) {
        count(run, 0);
        run->first_done = true;
    }
    return code == TB_EBUSY ? TB_OK : code;
}

/* Counts the oldest step that is under way, if it is over. */
static int32_t finish_step(tb_nccl_run *run, tb_error *err) {
    int32_t code = ask(run->set, slot_of(run, run->over)->unpacked, err);
    if (code == TB_OK) {
        count(run, run->over);
        run->over++;
    }
    return code == TB_EBUSY ? TB_OK : code;
}

/*
 * All that a step of a mixed transfer sends is there; or the round has failed everywhere. A rank on which it has not
 * failed might otherwise take what is sent for good.
 */
static bool is_there(const tb_nccl_run *run, const tb_nccl_step *step) {
    tb_transfer *transfer = run->transfer;
    bool there = true;
    pthread_mutex_lock(&transfer->session->lock);
    for (uint32_t i = step->first_op; i < step->first_op + step->op_count && there; i++) {
        const tb_nccl_op *op = &tb_nccl_run_of(transfer)->plan->ops[i];
        there = !op->sends || transfer->waits[op->bucket] == 0;
    }
    there |= run->drains;
    pthread_mutex_unlock(&transfer->session->lock);
    return there;
}

static bool may_pack(const tb_nccl_run *run) {
    const tb_nccl_steps *plan = run->plan;
    if (run->packed == plan->step_count || run->packed - run->over >= plan->depth) {
        return false;
    }
    const tb_nccl_step *step = &plan->steps[run->packed];
    if (!step->waits) {
        return true;
    }
    /* Its slot is free; and what it reads has been put into its stream. */
    return plan->mixed ? is_there(run, step) : run->launched == run->packed;
}

static int32_t go_on(tb_nccl_run *run, tb_error *err) {
    tb_nccl_set *set = run->set;
    int32_t code = tb_nccl_settled(set, err);
    if (code == TB_EBUSY) {
        return TB_OK;
    }
    if (code == TB_OK && set->asking) {
        set->asking = false;
        code = unpack(run, run->launched++, err);
    }
    if (code == TB_OK && run->over < run->launched) {
        code = finish_step(run, err);
    }
    while (code == TB_OK && may_pack(run)) {
        code = pack(run, run->packed++, err);
    }
    if (code == TB_OK && run->launched < run->packed) {
        code = launch(run, run->launched, err);
        if (code == TB_OK && !set->asking) {
            code = unpack(run, run->launched++, err);
        }
    }
    return code;
}

/* A round that has failed goes on to its end, for so long. */
static int32_t check_time(tb_nccl_run *run, tb_error *err) {
    tb_session *session = run->transfer->session;
    pthread_mutex_lock(&session->lock);
    if (run->transfer->failing && run->quiet_by == 0) {
        run->quiet_by = tb_deadline((uint64_t)session->options.quiesce_ms * 1000000);
    }
    pthread_mutex_unlock(&session->lock);
    if (run->quiet_by == 0 || tb_now() < run->quiet_by) {
        return TB_OK;
    }
    return tb_fail(err, TB_EINVALIDATED, session->options.rank, 0,
                   "the communicator did not come to rest within %u ms after a round had failed",
                   session->options.quiesce_ms);
}

bool tb_nccl_run_step(tb_nccl_run *run, tb_error *err) {
    int32_t code = go_on(run, err);
    if (code == TB_OK) {
        code = check_time(run, err);
    }
    err->code = code;
    return code == TB_OK && run->over == run->plan->step_count;
}
