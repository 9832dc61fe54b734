/*
 * What a session is asked of its communicators, and how they end with it. The calls of the interface take the session's
 * lock for themselves; nccl.h says which of the others hold it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/handle.h"
#include "carriers/nccl/nccl.h"

enum { MOST_IN_SET = 1 << 16 };

/* ---- the interface -------------------------------------------------------------------------------------- */

static int32_t load(const tb_session *session, const char *library, tb_nccl *nccl, tb_error *err) {
    if ((session->identity.carriers & TB_CARRY_NCCL) == 0 || tb_nccl_of(session) != NULL) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the session does not use nccl, or has its library already");
    }
    int32_t code = tb_nccl_load(library, &nccl->api, err);
    return code == TB_OK ? tb_cuda_worker_open(session->options.device, &nccl->worker, err) : code;
}

int32_t tb_session_use_nccl(uint64_t handle, const char *library, tb_error *err) {
    uint32_t version;
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    tb_nccl *nccl = calloc(1, sizeof *nccl);
    int32_t code = nccl == NULL ? tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for NCCL")
                                : tb_nccl_version(library, &version, err);
    if (code == TB_OK) {
        code = load(session, library, nccl, err);
    }
    if (code != TB_OK) {
        free(nccl);
        tb_handle_put(handle);
        return code;
    }
    tb_cond_init(&nccl->rested);
    nccl->session = session;
    nccl->task.step = tb_nccl_task_step;
    pthread_mutex_lock(&session->lock);
    session->carrier_state[TB_CARRIER_NCCL] = nccl;
    session->identity.facts[TB_FACT_NCCL] = version;
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return TB_OK;
}

static int32_t check_ranks(const tb_session *session, const int32_t *ranks, uint32_t count, uint32_t *own,
                           tb_error *err) {
    *own = TB_NONE;
    for (uint32_t i = 0; i < count && i < MOST_IN_SET; i++) {
        if (ranks[i] < 0 || ranks[i] >= session->options.world || (i > 0 && ranks[i] <= ranks[i - 1])) {
            return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the ranks of a set must ascend, and lie within the world");
        }
        *own = ranks[i] == session->options.rank ? i : *own;
    }
    if (count > MOST_IN_SET) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "a set of %u ranks is too large: it may have %u", count,
                       (uint32_t)MOST_IN_SET);
    }
    if (*own == TB_NONE) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "a set of %u ranks does not name rank %d, which joins it", count,
                       session->options.rank);
    }
    return TB_OK;
}

static int32_t join(tb_session *session, const int32_t *ranks, uint32_t count, const uint8_t id[128], uint32_t epoch,
                    uint64_t *number, tb_error *err) {
    uint32_t own;
    int32_t code = check_ranks(session, ranks, count, &own, err);
    if (code != TB_OK) {
        return code;
    }
    if (tb_nccl_of(session) == NULL || session->closing) {
        return tb_fail(err, TB_ECLOSED, -1, 0, "the session is closed, or has no device");
    }
    tb_nccl_set *set = calloc(1, sizeof *set);
    int32_t *copy = malloc(count * sizeof *copy);
    if (set == NULL || copy == NULL) {
        free(set);
        free(copy);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a set of %u ranks", count);
    }
    memcpy(copy, ranks, count * sizeof *copy);
    memcpy(set->id.internal, id, sizeof set->id.internal);
    set->nccl = tb_nccl_of(session);
    set->number = ++tb_nccl_of(session)->set_count;
    set->ranks = copy;
    set->rank_count = count;
    set->own = own;
    set->epoch = epoch;
    set->runs_end = &set->runs;
    set->next = tb_nccl_of(session)->sets;
    tb_nccl_of(session)->sets = set;
    *number = set->number;
    tb_nccl_wake(tb_nccl_of(session));
    return TB_OK;
}

int32_t tb_nccl_join(uint64_t handle, const int32_t *ranks, uint32_t count, const uint8_t id[128], uint32_t epoch,
                     uint64_t *number, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    int32_t code = join(session, ranks, count, id, epoch, number, err);
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}

int32_t tb_nccl_state(uint64_t handle, uint64_t number, uint32_t *state, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_nccl_set *set = tb_nccl_find(session, number, err);
    int32_t code = set == NULL ? TB_ECLOSED : TB_OK;
    if (set != NULL && set->doomed) {
        code = tb_fail(err, set->error.code, set->error.rank, 0, "%s", set->error.message);
    } else if (set != NULL) {
        *state = set->state;
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}

int32_t tb_nccl_leave(uint64_t handle, uint64_t number, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_nccl_set *set = tb_nccl_find(session, number, err);
    if (set != NULL) {
        tb_nccl_doom(set, TB_EINVALIDATED, session->options.rank, "the communicator was given up for another");
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return set == NULL ? TB_ECLOSED : TB_OK;
}

/* ---- the end -------------------------------------------------------------------------------------------- */

void tb_nccl_stop(tb_session *session) {
    tb_nccl *nccl = tb_nccl_of(session);
    for (tb_nccl_set *set = nccl == NULL ? NULL : nccl->sets; set != NULL; set = set->next) {
        tb_nccl_doom(set, TB_ECLOSED, session->options.rank, "the session is closed");
    }
}

bool tb_nccl_rest(tb_session *session, uint64_t until) {
    tb_nccl *nccl = tb_nccl_of(session);
    if (nccl == NULL) {
        return true;
    }
    struct timespec limit = tb_timespec(until);
    bool late = false;
    pthread_mutex_lock(&session->lock);
    while ((nccl->running || nccl->buildings > 0) && !late) {
        late = pthread_cond_timedwait(&nccl->rested, &session->lock, &limit) == ETIMEDOUT;
    }
    bool rests = !nccl->running && nccl->buildings == 0;
    pthread_mutex_unlock(&session->lock);
    return rests;
}

typedef struct giving {
    tb_cuda_task task;
    tb_cu_event event;
} giving;

static enum tb_cuda_step step_give(tb_cuda_task *task, tb_cuda_worker *worker) {
    tb_cuda_worker_give_event(worker, ((giving *)task)->event);
    free(task);
    return TB_CUDA_DONE;
}

void tb_nccl_give_event(tb_nccl *nccl, tb_cu_event event) {
    giving *what = malloc(sizeof *what);
    if (what != NULL) {
        *what = (giving){.task.step = step_give, .event = event};
        tb_cuda_worker_submit(nccl->worker, &what->task);
    }
}

int32_t tb_nccl_free(tb_session *session, tb_error *err) {
    tb_nccl *nccl = tb_nccl_of(session);
    if (nccl == NULL) {
        return TB_OK;
    }
    session->carrier_state[TB_CARRIER_NCCL] = NULL;
    int32_t code = tb_cuda_worker_close(nccl->worker, session->options.quiesce_ms, err);
    while (nccl->sets != NULL) {
        tb_nccl_set *set = nccl->sets;
        nccl->sets = set->next;
        free(set->ranks);
        free(set);
    }
    pthread_cond_destroy(&nccl->rested);
    free(nccl);
    return code;
}
