/*
 * The thread of the workers. It does what it is handed, moves what is to be moved, and lets UCX go on: a source must,
 * too, since what its hardware does not do by itself, its worker does. It sleeps while nothing comes and nothing is
 * under way. Its tasks are behind a lock; nothing else of what it does is.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/spawn.h"
#include "carriers/ucx/ucx.h"

enum { STACK_BYTES = 1 << 20, TICK_MS = 10, SPIN_NS = 5000, LOOK_TURNS = 16 };
#define END_NS 2000000000ull    /* end points have that long to be closed with the session */
#define PARK_NS 200000000ull    /* a thread has that long to come to rest as the process ends */
#define CALL_NS 120000000000ull /* what a caller waits for: to register much memory takes long */
#define STOP_NS 3000000000ull   /* more than END_NS: what is asked for of the worker at last */
#define LOOK_NS 20000000ull     /* nobody wakes those who wait when the process ends */

/* ---- the end of the process ----------------------------------------------------------------------------- */

/*
 * When the process exits, UCX takes its tables down while threads still run. So the threads are stopped before that:
 * the functions of atexit are called before those of a library.
 */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t parked = PTHREAD_COND_INITIALIZER;
static tb_ucx *running;
static uint32_t running_count;
static atomic_bool exiting; /* written behind the lock */

static void wake(tb_ucx *ucx) {
    uint64_t one = 1;
    while (write(ucx->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void park_all(void) {
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    uint64_t until = (uint64_t)limit.tv_sec * 1000000000 + (uint64_t)limit.tv_nsec + PARK_NS;
    limit = (struct timespec){.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
    pthread_mutex_lock(&list_lock);
    atomic_store(&exiting, true);
    for (tb_ucx *ucx = running; ucx != NULL; ucx = ucx->next) {
        wake(ucx);
    }
    while (running_count > 0 && pthread_cond_timedwait(&parked, &list_lock, &limit) != ETIMEDOUT) {
    }
    pthread_mutex_unlock(&list_lock);
}

static void park_if_exiting(void) {
    pthread_mutex_lock(&list_lock);
    if (atomic_load(&exiting)) {
        running_count--;
        pthread_cond_signal(&parked);
        for (;;) {
            pthread_cond_wait(&parked, &list_lock);
        }
    }
    pthread_mutex_unlock(&list_lock);
}

static void list_add(tb_ucx *ucx) {
    static bool registered;
    pthread_mutex_lock(&list_lock);
    if (!registered) {
        registered = atexit(park_all) == 0;
    }
    ucx->next = running;
    running = ucx;
    running_count++;
    pthread_mutex_unlock(&list_lock);
}

static void list_remove(tb_ucx *ucx) {
    pthread_mutex_lock(&list_lock);
    for (tb_ucx **at = &running; *at != NULL; at = &(*at)->next) {
        if (*at == ucx) {
            *at = ucx->next;
            running_count--;
            break;
        }
    }
    pthread_mutex_unlock(&list_lock);
}

/* ---- tasks ---------------------------------------------------------------------------------------------- */

void tb_ucx_post(tb_ucx *ucx, tb_ucx_task *task) {
    task->next = NULL;
    pthread_mutex_lock(&ucx->lock);
    *ucx->tasks_end = task;
    ucx->tasks_end = &task->next;
    pthread_mutex_unlock(&ucx->lock);
    wake(ucx);
}

/* The thread's and the caller's: who is the last to leave it frees it. Behind the lock. */
typedef struct call {
    tb_ucx_task task; /* first */
    int32_t (*function)(tb_ucx *ucx, void *argument, tb_error *err);
    void *argument;
    tb_error error;
    int32_t code;
    bool over, abandoned;
} call;

static void run_call(tb_ucx *ucx, tb_ucx_task *task) {
    call *what = (call *)task;
    pthread_mutex_lock(&ucx->lock);
    bool abandoned = what->abandoned;
    pthread_mutex_unlock(&ucx->lock);
    int32_t code = what->function(ucx, what->argument, abandoned ? NULL : &what->error);
    if (code == TB_UCX_AGAIN) {
        tb_ucx_post(ucx, task);
        return;
    }
    pthread_mutex_lock(&ucx->lock);
    what->code = code;
    what->over = true;
    abandoned = what->abandoned;
    ucx->abandoned -= abandoned;
    pthread_cond_broadcast(&ucx->done);
    pthread_mutex_unlock(&ucx->lock);
    if (abandoned) {
        free(what);
    }
}

/*
 * With the lock: waits until something is over. False if it takes too long, or if the process ends: threads then rest.
 */
static bool await_over(tb_ucx *ucx, const bool *over, uint64_t most) {
    uint64_t until = tb_deadline(most);
    while (!*over && !atomic_load(&exiting) && tb_now() < until) {
        struct timespec limit = tb_timespec(tb_deadline(LOOK_NS));
        pthread_cond_timedwait(&ucx->done, &ucx->lock, &limit);
    }
    return *over;
}

int32_t tb_ucx_call(tb_ucx *ucx, int32_t (*function)(tb_ucx *ucx, void *argument, tb_error *err), void *argument,
                    tb_error *err) {
    call *what = malloc(sizeof *what);
    if (what == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a call of the thread of UCX");
    }
    *what = (call){.task.run = run_call, .function = function, .argument = argument};
    tb_ucx_post(ucx, &what->task);
    pthread_mutex_lock(&ucx->lock);
    /* If it has not come back to an earlier caller, it is not waited for as long by every later one. */
    bool over = await_over(ucx, &what->over, ucx->abandoned > 0 ? STOP_NS : CALL_NS);
    what->abandoned = !over;
    ucx->abandoned += !over;
    pthread_mutex_unlock(&ucx->lock);
    if (!over) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "a call of UCX did not return, or the process is ending");
    }
    int32_t code = what->code;
    if (code != TB_OK && err != NULL) {
        *err = what->error;
    }
    free(what);
    return code;
}

static bool run_tasks(tb_ucx *ucx) {
    pthread_mutex_lock(&ucx->lock);
    tb_ucx_task *task = ucx->tasks;
    ucx->tasks = NULL;
    ucx->tasks_end = &ucx->tasks;
    pthread_mutex_unlock(&ucx->lock);
    bool some = task != NULL;
    while (task != NULL) {
        tb_ucx_task *next = task->next; /* it may be freed */
        task->run(ucx, task);
        task = next;
    }
    return some;
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static void sleep_until_something_comes(tb_ucx *ucx) {
    struct pollfd fds[1 + TB_UCX_WORKERS] = {{.fd = ucx->wake_fd, .events = POLLIN}};
    bool deaf = false;
    for (int i = 0; i < TB_UCX_WORKERS; i++) {
        fds[1 + i] = (struct pollfd){.fd = ucx->progress_fds[i], .events = POLLIN};
        tb_ucs_status status = ucx->api->ucp_worker_arm(ucx->workers[i]);
        if (status == TB_UCS_BUSY) {
            return; /* something came meanwhile */
        }
        deaf = deaf || status != TB_UCS_OK; /* its descriptor says nothing */
    }
    /* Nobody wakes us when a round is given up: what is under way for it is looked at. */
    poll(fds, 1 + TB_UCX_WORKERS, deaf || ucx->moves != NULL || ucx->closing > 0 ? TICK_MS : -1);
    uint64_t woken;
    if ((fds[0].revents & POLLIN) != 0 && read(ucx->wake_fd, &woken, sizeof woken) < 0) {
        return; /* another look does no harm */
    }
}

/* Lets the workers go on, or only those that had something to do the last time. True if something was done. */
static bool progress(tb_ucx *ucx, bool all) {
    bool some = false;
    for (int i = 0; i < TB_UCX_WORKERS; i++) {
        if (all || ucx->goes_on[i]) {
            ucx->goes_on[i] = ucx->api->ucp_worker_progress(ucx->workers[i]) != 0;
            some = some || ucx->goes_on[i];
        }
    }
    return some;
}

static bool is_over(tb_ucx *ucx, uint64_t *until) {
    pthread_mutex_lock(&ucx->lock);
    bool stop = ucx->stop && ucx->tasks == NULL && ucx->moves == NULL;
    pthread_mutex_unlock(&ucx->lock);
    if (!stop) {
        return false;
    }
    *until = *until == 0 ? tb_deadline(END_NS) : *until;
    return ucx->closing == 0 || tb_now() >= *until;
}

static void *run(void *argument) {
    tb_ucx *ucx = argument;
    uint64_t last = tb_now(), until = 0;
    bool some = true;
    for (uint32_t turn = 0; some || !is_over(ucx, &until); turn++) {
        park_if_exiting();
        /* A look at a worker costs system calls: the one that has nothing to do is left alone for a while. */
        bool all = !some || turn % LOOK_TURNS == 0;
        some = run_tasks(ucx);
        some = progress(ucx, all) || some;
        some = tb_ucx_moves_go_on(ucx) || some;
        uint64_t now = tb_now();
        if (some) {
            last = now;
        } else if (all && now - last >= (ucx->gets > 0 ? SPIN_NS : 0)) {
            sleep_until_something_comes(ucx);
        }
    }
    list_remove(ucx);
    pthread_mutex_lock(&ucx->lock);
    ucx->ended = true;
    pthread_cond_broadcast(&ucx->done);
    pthread_mutex_unlock(&ucx->lock);
    return NULL;
}

int32_t tb_ucx_start(tb_ucx *ucx, tb_error *err) {
    list_add(ucx);
    int error = tb_spawn(&ucx->thread, STACK_BYTES, 0, run, ucx);
    if (error != 0) {
        list_remove(ucx);
        return tb_fail(err, TB_ESYSTEM, -1, error, "a thread for UCX");
    }
    return TB_OK;
}

bool tb_ucx_stop(tb_ucx *ucx) {
    pthread_mutex_lock(&ucx->lock);
    ucx->stop = true;
    wake(ucx);
    bool ended = await_over(ucx, &ucx->ended, STOP_NS);
    pthread_mutex_unlock(&ucx->lock);
    if (!ended) {
        pthread_detach(ucx->thread);
        return false;
    }
    pthread_join(ucx->thread, NULL);
    return ucx->closing == 0;
}
