/*
 * The memory that steps take of the device, from prepare to release. The session's lock is held unless a comment says
 * otherwise.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/conn.h"
#include "base/error.h"
#include "round/transfer.h"
#include "base/handle.h"
#include "base/table.h"
#include "device/device.h"
#include "carriers/nccl/nccl.h"

/* ---- prepare -------------------------------------------------------------------------------------------- */

/* Which channels others move; true if there are such, but for what is copied within this rank. */
static bool find_elsewhere(const tb_transfer *transfer, bool *elsewhere) {
    const tb_program *program = &transfer->program;
    bool any = false;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        elsewhere[i] = true;
        for (uint32_t m = 0; m < transfer->member_count && channel->direction != TB_LOCAL; m++) {
            const tb_member *member = &transfer->members[m];
            bool by_nccl = member->rank == (int32_t)channel->peer && (member->roles & TB_MEMBER_PEER) != 0;
            elsewhere[i] = elsewhere[i] && !by_nccl;
        }
        any |= elsewhere[i] && channel->direction != TB_LOCAL;
    }
    return any;
}

int32_t tb_nccl_plan(tb_transfer *transfer, tb_error *err) {
    const tb_program *program = &transfer->program;
    if (transfer->device == NULL || tb_nccl_of(transfer->session) == NULL) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "nccl: tensors of this rank lie in memory of the host");
    }
    tb_nccl_run *run = calloc(1, sizeof *run);
    bool *elsewhere = tb_table(program->header->channel_count, sizeof *elsewhere);
    transfer->joint.own = run;
    if (run != NULL) {
        run->transfer = transfer;
        run->plan = calloc(1, sizeof *run->plan);
        run->said = tb_table((uint64_t)program->header->channel_count + transfer->member_count, sizeof *run->said);
    }
    if (run == NULL || run->plan == NULL || run->said == NULL || elsewhere == NULL) {
        free(elsewhere);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for the rounds of a transfer");
    }
    bool mixed = find_elsewhere(transfer, elsewhere);
    int32_t code = tb_nccl_steps_plan(program, mixed ? elsewhere : NULL, run->plan, err);
    transfer->joint.alone = !mixed;
    transfer->joint.bytes = run->plan->device_bytes;
    free(elsewhere);
    return code;
}

static int32_t build(tb_transfer *transfer, tb_cuda_worker *worker, tb_error *err) {
    tb_nccl_steps *plan = tb_nccl_run_of(transfer)->plan;
    tb_cu_pointer memory = 0;
    if (plan->device_bytes > 0) {
        TB_CUDA_TRY(worker->api, cuMemAlloc_v2(&memory, plan->device_bytes), err);
    }
    int32_t code = tb_nccl_steps_place(&transfer->program, transfer->bindings, &transfer->pool, memory, plan, err);
    if (code == TB_OK) {
        code = tb_cuda_moves_upload(&plan->moves, worker, err);
    }
    return code;
}

static enum tb_cuda_step step_build(tb_cuda_task *task, tb_cuda_worker *worker) {
    tb_nccl_run *run = (tb_nccl_run *)((char *)task - offsetof(tb_nccl_run, building));
    tb_session *session = run->transfer->session;
    tb_nccl *nccl = tb_nccl_of(session);
    tb_error err;
    int32_t code = build(run->transfer, worker, &err);
    pthread_mutex_lock(&session->lock);
    run->built = code == TB_OK ? TB_RUN_BUILT : TB_RUN_FAILED;
    if (code != TB_OK) {
        run->failure = err;
    }
    nccl->buildings--;
    pthread_cond_broadcast(&nccl->rested);
    pthread_mutex_unlock(&session->lock);
    return TB_CUDA_DONE;
}

/* Its ranks are just those of the transfer's members that join. */
static bool is_set_of(const tb_nccl_set *set, const tb_transfer *transfer) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < transfer->member_count; i++) {
        if ((transfer->members[i].roles & TB_MEMBER_JOINS) == 0) {
            continue;
        }
        if (at == set->rank_count || set->ranks[at++] != transfer->members[i].rank) {
            return false;
        }
    }
    return at == set->rank_count;
}

static int32_t attach(tb_transfer *transfer, tb_nccl_set *set, tb_error *err) {
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    if (run == NULL || run->built != TB_RUN_UNBUILT || !is_set_of(set, transfer)) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the communicator has other ranks than the transfer");
    }
    run->set = set;
    run->built = TB_RUN_BUILDING;
    run->building.step = step_build;
    set->nccl->buildings++;
    tb_cuda_worker_submit(set->nccl->worker, &run->building);
    return TB_OK;
}

/* ---- giving back: without the lock ---------------------------------------------------------------------- */

typedef struct freeing {
    tb_cuda_task task;
    tb_nccl_steps *plan;
} freeing;

static enum tb_cuda_step step_free(tb_cuda_task *task, tb_cuda_worker *worker) {
    freeing *what = (freeing *)task;
    tb_cuda_moves_unload(&what->plan->moves, worker);
    if (what->plan->memory != 0) {
        tb_cuda_worker_free(worker, what->plan->memory, NULL);
    }
    tb_nccl_steps_free(what->plan);
    free(what);
    return TB_CUDA_DONE;
}

void tb_nccl_transfer_free(tb_transfer *transfer) {
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    tb_nccl *nccl = tb_nccl_of(transfer->session);
    bool built = run->built != TB_RUN_UNBUILT;
    if (built && run->first != NULL && nccl != NULL) {
        tb_nccl_give_event(nccl, run->first);
    }
    freeing *what = built && nccl != NULL && !transfer->quarantined ? malloc(sizeof *what) : NULL;
    if (what != NULL) {
        *what = (freeing){.task.step = step_free, .plan = run->plan};
        tb_cuda_worker_submit(nccl->worker, &what->task);
    } else if (!built) {
        tb_nccl_steps_free(run->plan);
    }
    free(run->said);
    free(run);
}

bool tb_nccl_busy(const tb_transfer *transfer) {
    return tb_nccl_run_of(transfer)->built == TB_RUN_BUILDING;
}

/* ---- the interface: without the lock -------------------------------------------------------------------- */

int32_t tb_transfer_attach(uint64_t handle, uint64_t transfer_handle, uint64_t communicator, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_transfer *transfer = tb_transfer_find(session, transfer_handle, err);
    tb_nccl_set *set = transfer == NULL ? NULL : tb_nccl_find(session, communicator, err);
    int32_t code = set == NULL ? TB_ECLOSED : attach(transfer, set, err);
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}

int32_t tb_transfer_attached(uint64_t handle, uint64_t transfer_handle, uint32_t *attached, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_transfer *transfer = tb_transfer_find(session, transfer_handle, err);
    const tb_nccl_run *run = transfer == NULL ? NULL : tb_nccl_run_of(transfer);
    int32_t code = transfer == NULL ? TB_ECLOSED : TB_OK;
    *attached = run != NULL && run->built == TB_RUN_BUILT;
    if (run != NULL && run->built == TB_RUN_FAILED) {
        code = tb_fail(err, run->failure.code, session->options.rank, 0, "%s", run->failure.message);
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}
