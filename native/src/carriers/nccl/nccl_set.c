/*
 * Communicators: how they are made, served and aborted, and the one task that does it. The task runs in the device's
 * thread without a lock, and takes the session's for what it decides.
 */
#include "base/error.h"
#include "carriers/nccl/nccl.h"
#include "round/round.h"

/* ---- in the device's thread ----------------------------------------------------------------------------- */

int32_t tb_nccl_settled(tb_nccl_set *set, tb_error *err) {
    const tb_nccl_api *api = set->nccl->api;
    tb_nccl_result state = TB_NCCL_SUCCESS;
    if (set->comm == NULL) {
        return TB_OK;
    }
    tb_nccl_result asked = api->ncclCommGetAsyncError(set->comm, &state);
    if (asked != TB_NCCL_SUCCESS || (state != TB_NCCL_SUCCESS && state != TB_NCCL_IN_PROGRESS)) {
        return tb_nccl_fail(api, asked != TB_NCCL_SUCCESS ? asked : state, set->comm, err, "NCCL");
    }
    return state == TB_NCCL_IN_PROGRESS ? TB_EBUSY : TB_OK;
}

static int32_t make_streams(tb_nccl_set *set, tb_error *err) {
    tb_cuda_worker *worker = set->nccl->worker;
    TB_CUDA_TRY(worker->api, cuStreamCreate(&set->wire, TB_CU_STREAM_NON_BLOCKING), err);
    TB_CUDA_TRY(worker->api, cuStreamCreate(&set->packing, TB_CU_STREAM_NON_BLOCKING), err);
    TB_CUDA_TRY(worker->api, cuStreamCreate(&set->out, TB_CU_STREAM_NON_BLOCKING), err);
    for (int i = 0; i < 2; i++) {
        tb_nccl_slot *slot = &set->slots[i];
        slot->step = TB_NONE;
        TB_CUDA_TRY(worker->api, cuEventCreate(&slot->packed, TB_CU_EVENT_DISABLE_TIMING), err);
        TB_CUDA_TRY(worker->api, cuEventCreate(&slot->wired, TB_CU_EVENT_DISABLE_TIMING), err);
        TB_CUDA_TRY(worker->api, cuEventCreate(&slot->unpacked, TB_CU_EVENT_DISABLE_TIMING), err);
    }
    return TB_OK;
}

static int32_t start_set(tb_nccl_set *set, tb_error *err) {
    const tb_nccl_api *api = set->nccl->api;
    set->started = true;
    int32_t code = make_streams(set, err);
    if (code != TB_OK || set->rank_count == 1) {
        return code;
    }
    tb_nccl_config config;
    tb_nccl_config_init(&config);
    tb_nccl_result result =
        api->ncclCommInitRankConfig(&set->comm, (int)set->rank_count, set->id, (int)set->own, &config);
    if (result == TB_NCCL_SUCCESS || result == TB_NCCL_IN_PROGRESS) {
        return TB_OK;
    }
    code = tb_nccl_fail(api, result, set->comm, err, "ncclCommInitRankConfig");
    if (set->comm == NULL) {
        api->ncclGroupEnd(); /* that a failed init left open (docs/nccl.md); if it did not, this does nothing */
    }
    return code;
}

static void destroy(const tb_cuda_api *api, tb_cu_stream *stream) {
    if (*stream != NULL) {
        api->cuStreamDestroy_v2(*stream);
        *stream = NULL;
    }
}

static void destroy_event(const tb_cuda_api *api, tb_cu_event *event) {
    if (*event != NULL) {
        api->cuEventDestroy_v2(*event);
        *event = NULL;
    }
}

static bool is_idle(const tb_cuda_api *api, tb_cu_stream stream) {
    return stream == NULL || api->cuStreamQuery(stream) != TB_CU_NOT_READY;
}

/* Aborts, then waits for what is in the streams. True once nothing of it runs. */
static bool tear(tb_nccl_set *set) {
    const tb_cuda_api *api = set->nccl->worker->api;
    if (set->comm != NULL) {
        set->nccl->api->ncclCommAbort(set->comm);
        set->comm = NULL;
    }
    if (!is_idle(api, set->wire) || !is_idle(api, set->packing) || !is_idle(api, set->out)) {
        return false;
    }
    destroy(api, &set->wire);
    destroy(api, &set->packing);
    destroy(api, &set->out);
    for (int i = 0; i < 2; i++) {
        destroy_event(api, &set->slots[i].packed);
        destroy_event(api, &set->slots[i].wired);
        destroy_event(api, &set->slots[i].unpacked);
    }
    return true;
}

/* Rounds that were on it end; with the lock. */
static void end_runs(tb_nccl_set *set, bool quiet) {
    for (tb_transfer *transfer = set->nccl->session->transfers; transfer != NULL;) {
        tb_transfer *next = transfer->next;
        tb_nccl_run *run = tb_nccl_run_of(transfer);
        if (run != NULL && run->set == set && run->active) {
            tb_round_fail(transfer, set->error.code, set->error.rank, set->error.os_errno, set->error.message);
            if (!quiet) {
                tb_nccl_quarantine(transfer);
            }
            tb_nccl_run_over(run);
        }
        transfer = next;
    }
    set->runs = NULL;
    set->runs_end = &set->runs;
}

static void end_set(tb_nccl_set *set) {
    tb_session *session = set->nccl->session;
    bool torn = tear(set);
    pthread_mutex_lock(&session->lock);
    if (set->tear_by == 0) {
        set->tear_by = tb_deadline((uint64_t)session->options.quiesce_ms * 1000000);
    }
    bool late = !torn && tb_now() >= set->tear_by;
    if ((torn || late) && !set->ended) {
        set->ended = true;
        set->state = TB_SET_BROKEN;
        end_runs(set, torn);
    }
    set->torn = torn;
    pthread_mutex_unlock(&session->lock);
}

static void join_set(tb_nccl_set *set) {
    tb_session *session = set->nccl->session;
    tb_error err;
    int32_t code = set->started ? TB_OK : start_set(set, &err);
    if (code == TB_OK) {
        code = tb_nccl_settled(set, &err);
    }
    if (code == TB_EBUSY) {
        return;
    }
    pthread_mutex_lock(&session->lock);
    if (code != TB_OK) {
        tb_nccl_doom(set, code, session->options.rank, err.message);
    } else if (!set->doomed) {
        set->state = TB_SET_READY;
    }
    pthread_mutex_unlock(&session->lock);
}

/* What is next on it: the first of the list, or one whose first copies are to be made. With the lock. */
static tb_nccl_run *next_run(tb_nccl_set *set, bool *first) {
    for (tb_transfer *transfer = set->nccl->session->transfers; transfer != NULL; transfer = transfer->next) {
        tb_nccl_run *run = tb_nccl_run_of(transfer);
        if (run != NULL && run->set == set && run->active && !run->first_done) {
            *first = true;
            return run;
        }
    }
    *first = false;
    return set->runs;
}

static void serve_run(tb_nccl_set *set, tb_nccl_run *run, bool first) {
    tb_session *session = set->nccl->session;
    tb_error err;
    err.code = TB_OK;
    bool over = false;
    if (first) {
        tb_nccl_run_first(run, &err);
    } else {
        over = tb_nccl_run_step(run, &err);
    }
    pthread_mutex_lock(&session->lock);
    if (err.code != TB_OK) {
        bool doomed = set->doomed;
        tb_nccl_doom(set, err.code, err.rank < 0 ? session->options.rank : err.rank, err.message);
        if (!doomed) {
            set->error.os_errno = err.os_errno;
        }
    } else if (over) {
        set->runs = run->next;
        set->runs_end = set->runs == NULL ? &set->runs : set->runs_end;
        tb_nccl_run_over(run);
    }
    pthread_mutex_unlock(&session->lock);
}

static void serve_set(tb_nccl_set *set) {
    tb_session *session = set->nccl->session;
    pthread_mutex_lock(&session->lock);
    bool doomed = set->doomed && !set->torn;
    bool joining = !set->doomed && set->state == TB_SET_JOINING;
    bool ready = !set->doomed && set->state == TB_SET_READY;
    bool first = false;
    tb_nccl_run *run = ready ? next_run(set, &first) : NULL;
    pthread_mutex_unlock(&session->lock);
    if (doomed) {
        end_set(set);
    } else if (joining) {
        join_set(set);
    } else if (run != NULL) {
        serve_run(set, run, first);
    }
}

/* Rounds that failed before their turn, and will not get one. With the lock. */
static void settle_turnless(tb_nccl *nccl) {
    for (tb_transfer *transfer = nccl->session->transfers; transfer != NULL;) {
        tb_transfer *next = transfer->next;
        tb_nccl_run *run = tb_nccl_run_of(transfer);
        if (run != NULL && run->active && !run->turned && run->first_done && transfer->failing && run->refused) {
            tb_nccl_run_over(run);
        }
        transfer = next;
    }
}

/* True if the task is to be stepped again. With the lock. */
static bool has_work(const tb_nccl *nccl) {
    for (const tb_nccl_set *set = nccl->sets; set != NULL; set = set->next) {
        if ((set->doomed && !set->torn) || (!set->doomed && (set->state == TB_SET_JOINING || set->runs != NULL))) {
            return true;
        }
    }
    for (const tb_transfer *transfer = nccl->session->transfers; transfer != NULL; transfer = transfer->next) {
        const tb_nccl_run *run = tb_nccl_run_of(transfer);
        if (run != NULL && run->active && (!run->first_done || (transfer->failing && run->refused))) {
            return true;
        }
    }
    return false;
}

enum tb_cuda_step tb_nccl_task_step(tb_cuda_task *task, tb_cuda_worker *worker) {
    tb_nccl *nccl = (tb_nccl *)task;
    tb_session *session = nccl->session;
    (void)worker;
    pthread_mutex_lock(&session->lock);
    tb_nccl_set *set = nccl->sets;
    pthread_mutex_unlock(&session->lock);
    for (; set != NULL; set = set->next) {
        serve_set(set);
    }
    pthread_mutex_lock(&session->lock);
    settle_turnless(nccl);
    nccl->running = has_work(nccl);
    enum tb_cuda_step next = nccl->running ? TB_CUDA_AGAIN : TB_CUDA_DONE;
    if (!nccl->running) {
        pthread_cond_broadcast(&nccl->rested);
    }
    pthread_mutex_unlock(&session->lock);
    return next;
}

/* ---- asking: the lock is held --------------------------------------------------------------------------- */

void tb_nccl_wake(tb_nccl *nccl) {
    if (!nccl->running) {
        nccl->running = true;
        tb_cuda_worker_submit(nccl->worker, &nccl->task);
    }
}

void tb_nccl_doom(tb_nccl_set *set, int32_t code, int32_t rank, const char *why) {
    if (!set->doomed) {
        set->doomed = true;
        tb_fail(&set->error, code, rank, 0, "%s", why);
        tb_nccl_wake(set->nccl);
    }
}

tb_nccl_set *tb_nccl_find(tb_session *session, uint64_t number, tb_error *err) {
    tb_nccl_set *set = tb_nccl_of(session) == NULL ? NULL : tb_nccl_of(session)->sets;
    while (set != NULL && set->number != number) {
        set = set->next;
    }
    if (set == NULL) {
        tb_fail(err, TB_ECLOSED, -1, 0, "there is no such communicator");
    }
    return set;
}
