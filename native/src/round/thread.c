/*
 * Progress threads: each waits for its connections, serves them in turn, and moves what is to be moved in
 * this rank.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "base/spawn.h"
#include "round/transfer.h"
#include "round/round.h"

/* Local moves go in slices of about this many bytes, so that connections do not wait for them. */
enum { SLICE_BYTES = 512 * 1024 };
/* What is pulled goes in larger ones: connections have little to say meanwhile, and each slice costs a look
 * at them. */
enum { PULL_SLICE_BYTES = 2 * 1024 * 1024 };
enum { EVENTS = 64 };
enum { STACK_BYTES = 512 * 1024 };

/* ---- asking a thread: the lock is held ----------------------------------------------------------------- */

void tb_thread_wake(tb_thread *thread) {
    if (thread->sleeping) {
        thread->sleeping = false;
        uint64_t one = 1;
        ssize_t written = write(thread->wake_fd, &one, sizeof one);
        (void)written; /* only a counter at its end could refuse, which wakes as well */
    }
}

void tb_threads_sweep(tb_session *session) {
    for (uint32_t i = 0; i < session->thread_count; i++) {
        session->threads[i].sweep = true;
        tb_thread_wake(&session->threads[i]);
    }
}

void tb_threads_offer_job(tb_session *session) {
    for (uint32_t i = 0; i < session->thread_count; i++) {
        if (session->threads[i].sleeping) {
            tb_thread_wake(&session->threads[i]);
            return;
        }
    }
}

/* ---- timers: in the first thread, the lock is held ----------------------------------------------------- */

static void sooner(uint64_t *next, uint64_t at) {
    if (at != 0 && at < *next) {
        *next = at;
    }
}

static void check_transfers(tb_session *session, uint64_t now, uint64_t *next) {
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        if (transfer->deadline != 0 && now >= transfer->deadline && !transfer->failing) {
            tb_transfer_give_up(transfer, TB_ETIMEOUT);
        } else if (!transfer->failing) {
            sooner(next, transfer->deadline);
        }
        if (transfer->quiet_deadline != 0) {
            sooner(next, tb_pulls_look(transfer, now));
        }
    }
}

static void check_conns(tb_session *session, uint64_t now, uint64_t *next) {
    for (uint32_t i = 0; i < session->thread_count; i++) {
        for (tb_conn *conn = session->threads[i].conns; conn != NULL; conn = conn->next) {
            if (conn->deadline != 0 && now >= conn->deadline) {
                tb_conn_doom(conn);
            } else {
                sooner(next, conn->deadline);
            }
        }
    }
}

static void check_peers(tb_session *session, uint64_t now, uint64_t *next) {
    for (int32_t rank = 0; rank < session->options.world; rank++) {
        tb_peer *peer = session->peers[rank];
        if (peer == NULL) {
            continue;
        }
        if (peer->retry_at != 0 && now >= peer->retry_at) {
            peer->retry_at = 0;
            session->backend->connect(session, peer);
        }
        sooner(next, peer->retry_at);
    }
}

static void run_timers(tb_session *session) {
    uint64_t now = tb_now();
    if (now < session->next_timer) {
        return;
    }
    uint64_t next = UINT64_MAX;
    if (!session->closing) {
        if (session->backend->pings) {
            tb_peers_tick(session);
            sooner(&next, session->next_tick);
        }
        session->accept_pending |= session->accept_at != 0 && now >= session->accept_at;
        sooner(&next, session->accept_at > now ? session->accept_at : 0);
        check_transfers(session, now, &next);
        check_peers(session, now, &next);
    } else {
        sooner(&next, session->stop_at);
    }
    check_conns(session, now, &next);
    session->next_timer = next;
}

/* ---- one thread ---------------------------------------------------------------------------------------- */

static void sweep(tb_thread *thread) {
    thread->sweep = false;
    for (tb_conn *conn = thread->conns; conn != NULL; conn = conn->next) {
        tb_conn_let_go(conn, false);
    }
    if (thread->job.transfer != NULL && thread->job.transfer->failing) {
        tb_round_job_dropped(&thread->job);
    }
}

/* How long to wait for events; 0 where there is something to do at once. The lock is held. */
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

/* What the events say is noted in the connections, which belong to this thread. */
static void wait_for_events(tb_thread *thread, int milliseconds) {
    tb_session *session = thread->session;
    struct epoll_event events[EVENTS];
    int count = epoll_wait(thread->epoll_fd, events, EVENTS, milliseconds);
    bool accept = false;
    pthread_mutex_lock(&session->lock);
    thread->sleeping = false;
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == thread) {
            uint64_t wakes;
            ssize_t got = read(thread->wake_fd, &wakes, sizeof wakes);
            (void)got;
        } else if (events[i].data.ptr == session) {
            accept = true;
        } else {
            tb_conn *conn = events[i].data.ptr;
            conn->readable |= (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
            conn->writable |= (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
            conn->hung_up |= (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
            tb_conn_kick(conn);
        }
    }
    accept |= thread->index == 0 && session->accept_pending;
    session->accept_pending &= thread->index != 0;
    accept &= !session->closing;
    pthread_mutex_unlock(&session->lock);
    if (accept) {
        session->backend->accept(session);
    }
}

static void serve_open(tb_conn *conn) {
    bool more = tb_conn_read(conn);
    more |= tb_conn_write(conn);
    tb_session *session = conn->session;
    pthread_mutex_lock(&session->lock);
    if (conn->read_progress && conn->peer != NULL) {
        conn->read_progress = false;
        atomic_store(&conn->peer->heard, true);
    }
    if (more) {
        tb_conn_kick(conn);
    }
    /* With the lock: whoever says the last word makes it CLOSING before it lets the lock go. */
    bool said = conn->frame_count == 0 && conn->sending_at == conn->sending_bytes && conn->control_bytes == 0;
    bool finish = conn->state == TB_CONN_CLOSING && said && !conn->finished;
    pthread_mutex_unlock(&session->lock);
    if (finish) {
        conn->finished = true;
        conn->link.kind->finish(&conn->link);
    }
}

/*
 * The end of a connection says that this rank reads nothing of the peer any more. Those that wait are kicked
 * by tb_session_rests.
 */
static bool may_end(tb_session *session) {
    pthread_mutex_lock(&session->lock);
    bool rests = session->stale_pulls == 0;
    pthread_mutex_unlock(&session->lock);
    return rests;
}

static void serve(tb_conn *conn, uint8_t signals) {
    conn->readable |= (signals & TB_CONN_READABLE) != 0;
    conn->writable |= (signals & TB_CONN_WRITABLE) != 0;
    if (!conn->doomed && (conn->state == TB_CONN_CONNECTING || conn->state == TB_CONN_HANDSHAKE)) {
        conn->session->backend->establish(conn);
    }
    if (!conn->doomed && (conn->state == TB_CONN_OPEN || conn->state == TB_CONN_CLOSING)) {
        serve_open(conn);
    }
    if (conn->doomed && may_end(conn->session)) {
        tb_conn_end(conn);
    }
}

static void serve_all(tb_thread *thread) {
    tb_session *session = thread->session;
    /* As many as wait now: one that has more to do comes again after the events were looked at. */
    pthread_mutex_lock(&session->lock);
    tb_conn *list = thread->runnable;
    thread->runnable = NULL;
    thread->runnable_end = &thread->runnable;
    while (list != NULL) {
        tb_conn *conn = list;
        list = conn->next_runnable;
        conn->runnable = false;
        uint8_t signals = conn->signals;
        conn->signals = 0;
        pthread_mutex_unlock(&session->lock);
        serve(conn, signals);
        pthread_mutex_lock(&session->lock);
    }
    pthread_mutex_unlock(&session->lock);
}

static void serve_job(tb_thread *thread) {
    tb_session *session = thread->session;
    if (thread->job.transfer == NULL || tb_job_submit(&thread->job)) {
        return;
    }
    bool more = tb_job_slice(&thread->job, thread->job.exchange != NULL ? PULL_SLICE_BYTES : SLICE_BYTES);
    if (!more) {
        pthread_mutex_lock(&session->lock);
        tb_round_job_done(&thread->job);
        pthread_mutex_unlock(&session->lock);
    }
}

static void end_conns(tb_thread *thread) {
    tb_conn *conn;
    do {
        pthread_mutex_lock(&thread->session->lock);
        conn = thread->conns;
        pthread_mutex_unlock(&thread->session->lock);
        if (conn != NULL) {
            tb_conn_end(conn);
        }
    } while (conn != NULL);
}

static void *run(void *argument) {
    tb_thread *thread = argument;
    tb_session *session = thread->session;
    for (;;) {
        pthread_mutex_lock(&session->lock);
        if (thread->sweep) {
            sweep(thread);
        }
        if (thread->index == 0) {
            run_timers(session);
        }
        bool over = session->stop && session->stale_pulls == 0
                    && (thread->conns == NULL || tb_now() >= session->stop_at);
        if (thread->job.transfer == NULL && !session->stop) {
            tb_round_take_job(session, &thread->job);
        }
        int milliseconds = over ? 0 : wait_time(thread);
        pthread_mutex_unlock(&session->lock);
        if (over) {
            break;
        }
        wait_for_events(thread, milliseconds);
        serve_all(thread);
        while (tb_import_serve(session)) {
        }
        serve_job(thread);
    }
    end_conns(thread);
    pthread_mutex_lock(&session->lock);
    session->threads_ended++;
    if (session->closing && session->threads_ended == session->threads_running) {
        tb_session_event(session, &(tb_event){.kind = TB_EVENT_ENDED});
    }
    pthread_cond_broadcast(&session->thread_ended);
    pthread_mutex_unlock(&session->lock);
    return NULL;
}

/* ---- all of them --------------------------------------------------------------------------------------- */

static int32_t start_thread(tb_session *session, tb_thread *thread, tb_error *err) {
    thread->bounce = malloc(TB_BOUNCE_BYTES);
    thread->iov = malloc(TB_IOVECS * sizeof *thread->iov);
    thread->job.bounce = thread->bounce;
    thread->job.iov = thread->iov;
    if (thread->bounce == NULL || thread->iov == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a thread");
    }
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = thread};
    if ((thread->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0
        || (thread->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0
        || epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, thread->wake_fd, &wake) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "a thread's events");
    }
    int error = tb_spawn(&thread->id, STACK_BYTES, 0, run, thread);
    if (error != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, error, "a thread");
    }
    session->threads_running++;
    return TB_OK;
}

int32_t tb_threads_start(tb_session *session, tb_error *err) {
    uint32_t count = session->options.io_threads;
    session->threads = calloc(count, sizeof *session->threads);
    if (session->threads == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "%u threads", count);
    }
    session->thread_count = count;
    for (uint32_t i = 0; i < count; i++) {
        tb_thread *thread = &session->threads[i];
        thread->session = session;
        thread->index = i;
        thread->epoll_fd = -1;
        thread->wake_fd = -1;
        thread->runnable_end = &thread->runnable;
    }
    session->next_timer = 0;
    int32_t code = TB_OK;
    for (uint32_t i = 0; i < count && code == TB_OK; i++) {
        code = start_thread(session, &session->threads[i], err);
    }
    if (code != TB_OK) {
        tb_threads_join(session, UINT64_MAX);
    }
    return code;
}

bool tb_threads_join(tb_session *session, uint64_t until) {
    struct timespec limit = tb_timespec(until);
    bool late = false;
    pthread_mutex_lock(&session->lock);
    session->stop = true;
    for (uint32_t i = 0; i < session->threads_running; i++) {
        tb_thread_wake(&session->threads[i]);
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
    for (uint32_t i = 0; i < session->thread_count; i++) {
        tb_thread *thread = &session->threads[i];
        if (thread->epoll_fd >= 0) {
            close(thread->epoll_fd);
        }
        if (thread->wake_fd >= 0) {
            close(thread->wake_fd);
        }
        free(thread->iov);
        free(thread->bounce);
    }
    free(session->threads);
}
