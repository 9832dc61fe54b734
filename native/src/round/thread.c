/*
 * Progress threads: each serves its loop's connections, and moves what is to be moved in this rank. Functions take the
 * session's lock for themselves, unless a comment says that it is held.
 */
#include <errno.h>
#include <stdlib.h>

#include "round/carrier.h"
#include "base/error.h"
#include "base/spawn.h"
#include "round/round_job.h"
#include "wire/loop.h"

/* Local moves go in slices of about this many bytes, so that connections do not wait for them. */
enum { SLICE_BYTES = 512 * 1024 };
/* What is pulled goes in larger ones: connections have little to say meanwhile, and each slice costs a look
 * at them. */
enum { PULL_SLICE_BYTES = 2 * 1024 * 1024 };
enum { STACK_BYTES = 512 * 1024 };

/* ---- asking a thread: the lock is held ----------------------------------------------------------------- */

void tb_threads_sweep(tb_session *session) {
    for (uint32_t i = 0; i < session->loop_count; i++) {
        session->threads[i].sweep = true;
        tb_loop_wake(session->loops[i]);
    }
}

void tb_threads_offer_job(tb_session *session) {
    for (uint32_t i = 0; i < session->loop_count; i++) {
        if (session->threads[i].sleeping) {
            tb_loop_wake(session->loops[i]);
            return;
        }
    }
}

/* ---- timers: in the first thread, the lock is held ----------------------------------------------------- */

static void check_transfers(tb_session *session, uint64_t now, uint64_t *next) {
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        if (transfer->deadline != 0 && now >= transfer->deadline && !transfer->failing) {
            tb_transfer_give_up(transfer, TB_ETIMEOUT);
        } else if (!transfer->failing) {
            tb_sooner(next, transfer->deadline);
        }
        if (transfer->quiet_deadline != 0) {
            tb_sooner(next, tb_pulls_look(transfer, now));
        }
    }
}

static void run_timers(tb_session *session) {
    uint64_t now = tb_now();
    if (now < session->next_timer) {
        return;
    }
    uint64_t next = UINT64_MAX;
    if (!session->closing) {
        check_transfers(session, now, &next);
    } else {
        tb_sooner(&next, session->stop_at);
    }
    tb_net_run_timers(&session->net, now, &next);
    session->next_timer = next;
}

/* ---- one thread ---------------------------------------------------------------------------------------- */

static void sweep(tb_thread *thread) {
    tb_loop_sweep(&thread->loop);
    if (thread->job.transfer != NULL && thread->job.transfer->failing) {
        tb_round_job_dropped(&thread->job);
    }
}

/* How long to wait for events; 0 if there is something to do at once. The lock is held. */
static int wait_time(tb_thread *thread) {
    tb_session *session = thread->session;
    bool asked = thread->index == 0 && session->accept_pending;
    if (thread->runnable != NULL || thread->sweep || thread->job.transfer != NULL || asked
        || session->imports != NULL) {
        return 0;
    }
    thread->sleeping = true;
    uint64_t until = thread->index == 0 ? session->next_timer : UINT64_MAX;
    if (session->stop && session->stale_pulls == 0) {
        until = session->stop_at < until ? session->stop_at : until;
    }
    if (until == UINT64_MAX) {
        return -1;
    }
    uint64_t now = tb_now();
    uint64_t milliseconds = until <= now ? 0 : (until - now + 999999) / 1000000;
    return milliseconds > 60000 ? 60000 : (int)milliseconds;
}

void tb_thread_move(tb_thread *thread, uint64_t limit) {
    tb_session *session = thread->session;
    if (thread->job.transfer == NULL || tb_job_submit(&thread->job)) {
        return;
    }
    if (!tb_job_slice(&thread->job, limit)) {
        pthread_mutex_lock(&session->lock);
        tb_round_job_done(&thread->job);
        pthread_mutex_unlock(&session->lock);
    }
}

void tb_thread_decide(tb_thread *thread) {
    tb_session *session = thread->session;
    if (thread->sweep) {
        sweep(thread);
    }
    if (thread->index == 0) {
        run_timers(session);
    }
    if (thread->job.transfer == NULL && !session->stop) {
        tb_round_take_job(session, &thread->job);
    }
}

static void *run(void *argument) {
    tb_thread *thread = argument;
    tb_session *session = thread->session;
    for (;;) {
        pthread_mutex_lock(&session->lock);
        tb_thread_decide(thread);
        bool over = session->stop && session->stale_pulls == 0
                    && (thread->conns == NULL || tb_now() >= session->stop_at);
        int milliseconds = over ? 0 : wait_time(thread);
        pthread_mutex_unlock(&session->lock);
        if (over) {
            break;
        }
        tb_loop_wait(&thread->loop, milliseconds);
        tb_loop_serve(&thread->loop);
        while (tb_import_serve(session)) {
        }
        tb_thread_move(thread, thread->job.exchange != NULL ? PULL_SLICE_BYTES : SLICE_BYTES);
    }
    tb_loop_end(&thread->loop);
    pthread_mutex_lock(&session->lock);
    session->threads_ended++;
    if (session->closing && session->threads_ended == session->threads_running) {
        tb_net_event(&session->net, &(tb_event){.kind = TB_EVENT_ENDED});
    }
    pthread_cond_broadcast(&session->thread_ended);
    pthread_mutex_unlock(&session->lock);
    return NULL;
}

/* ---- all of them --------------------------------------------------------------------------------------- */

int32_t tb_threads_make(tb_session *session, tb_error *err) {
    uint32_t count = session->options.io_threads;
    session->threads = calloc(count, sizeof *session->threads);
    if (session->threads == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u threads", count);
    }
    session->next_timer = 0;
    for (uint32_t i = 0; i < count; i++) {
        tb_thread *thread = &session->threads[i];
        session->loops[i] = &thread->loop;
        session->loop_count = i + 1;
        int32_t code = tb_loop_open(&thread->loop, &session->net, i, err);
        if (code != TB_OK) {
            return code;
        }
        thread->session = session;
        thread->job.bounce = thread->bounce;
        thread->job.iov = thread->iov;
    }
    return TB_OK;
}

int32_t tb_threads_start(tb_session *session, tb_error *err) {
    for (uint32_t i = 0; i < session->loop_count; i++) {
        tb_thread *thread = &session->threads[i];
        int error = tb_spawn(&thread->id, STACK_BYTES, 0, run, thread);
        if (error != 0) {
            tb_threads_join(session, UINT64_MAX);
            return tb_fail(err, TB_ESYSTEM, -1, error, "a thread");
        }
        session->threads_running++;
    }
    return TB_OK;
}

bool tb_threads_join(tb_session *session, uint64_t until) {
    struct timespec limit = tb_timespec(until);
    bool late = false;
    pthread_mutex_lock(&session->lock);
    session->stop = true;
    for (uint32_t i = 0; i < session->threads_running; i++) {
        tb_loop_wake(session->loops[i]);
    }
    while (session->threads_ended < session->threads_running && !late) {
        late = pthread_cond_timedwait(&session->thread_ended, &session->lock, &limit) == ETIMEDOUT;
    }
    bool ended = session->threads_ended == session->threads_running;
    pthread_mutex_unlock(&session->lock);
    for (uint32_t i = 0; i < session->threads_running && ended; i++) {
        pthread_join(session->threads[i].id, NULL);
    }
    session->threads_running = ended ? 0 : session->threads_running;
    return ended;
}

void tb_threads_free(tb_session *session) {
    for (uint32_t i = 0; i < session->loop_count; i++) {
        tb_loop_close(session->loops[i]);
    }
    free(session->threads);
}
