/* Loops: a thread's connections, which it waits for and serves in turn. Each takes the session's lock for itself. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "wire/conn.h"
#include "wire/loop.h"

enum { EVENTS = 64 };

/* ---- opening and closing ------------------------------------------------------------------------------- */

int32_t tb_loop_open(tb_loop *loop, tb_net *net, uint32_t index, tb_error *err) {
    *loop = (tb_loop){.net = net, .index = index, .epoll_fd = -1, .wake_fd = -1};
    loop->runnable_end = &loop->runnable;
    loop->bounce = malloc(TB_BOUNCE_BYTES);
    loop->iov = malloc(TB_IOVECS * sizeof *loop->iov);
    if (loop->bounce == NULL || loop->iov == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a thread");
    }
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = loop};
    if ((loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0
        || (loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0
        || epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &wake) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "a thread's events");
    }
    return TB_OK;
}

void tb_loop_close(tb_loop *loop) {
    if (loop->epoll_fd >= 0) {
        close(loop->epoll_fd);
    }
    if (loop->wake_fd >= 0) {
        close(loop->wake_fd);
    }
    free(loop->iov);
    free(loop->bounce);
}

/* ---- waiting ------------------------------------------------------------------------------------------- */

void tb_loop_wake(tb_loop *loop) {
    if (loop->sleeping) {
        loop->sleeping = false;
        uint64_t one = 1;
        ssize_t written = write(loop->wake_fd, &one, sizeof one);
        (void)written; /* only a counter at its end could refuse, which wakes as well */
    }
}

static void note(tb_loop *loop, const struct epoll_event *event, bool *accept) {
    if (event->data.ptr == loop) {
        uint64_t wakes;
        ssize_t got = read(loop->wake_fd, &wakes, sizeof wakes);
        (void)got;
    } else if (event->data.ptr == loop->net) {
        *accept = true;
    } else {
        tb_conn *conn = event->data.ptr;
        conn->readable |= (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        conn->writable |= (event->events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
        conn->hung_up |= (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        tb_conn_kick(conn);
    }
}

void tb_loop_wait(tb_loop *loop, int milliseconds) {
    tb_net *net = loop->net;
    struct epoll_event events[EVENTS];
    int count = epoll_wait(loop->epoll_fd, events, EVENTS, milliseconds);
    bool accept = false;
    pthread_mutex_lock(&net->lock);
    loop->sleeping = false;
    for (int i = 0; i < count; i++) {
        note(loop, &events[i], &accept);
    }
    accept |= loop->index == 0 && net->accept_pending;
    net->accept_pending &= loop->index != 0;
    accept &= !net->closing;
    pthread_mutex_unlock(&net->lock);
    if (accept) {
        net->backend->accept(net);
    }
}

/* ---- serving ------------------------------------------------------------------------------------------- */

static void serve_open(tb_conn *conn) {
    bool more = tb_conn_read(conn);
    more |= tb_conn_write(conn);
    tb_net *net = conn->net;
    pthread_mutex_lock(&net->lock);
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
    pthread_mutex_unlock(&net->lock);
    if (finish) {
        conn->finished = true;
        conn->link.kind->finish(&conn->link);
    }
}

/*
 * The end of a connection says that this rank reads nothing of the peer any more. Those that wait for that are kicked
 * once nothing is read.
 */
static bool may_end(tb_net *net) {
    pthread_mutex_lock(&net->lock);
    bool rests = net->stale_pulls == 0;
    pthread_mutex_unlock(&net->lock);
    return rests;
}

static void serve(tb_conn *conn, uint8_t signals) {
    conn->readable |= (signals & TB_CONN_READABLE) != 0;
    conn->writable |= (signals & TB_CONN_WRITABLE) != 0;
    if (!conn->doomed && (conn->state == TB_CONN_CONNECTING || conn->state == TB_CONN_HANDSHAKE)) {
        conn->net->backend->establish(conn);
    }
    if (!conn->doomed && (conn->state == TB_CONN_OPEN || conn->state == TB_CONN_CLOSING)) {
        serve_open(conn);
    }
    if (conn->doomed && may_end(conn->net)) {
        tb_conn_end(conn);
    }
}

/* Takes the first of a list of connections and serves it. The lock is held, but not meanwhile. */
static void serve_first(tb_net *net, tb_conn **list) {
    tb_conn *conn = *list;
    *list = conn->next_runnable;
    conn->runnable = false;
    uint8_t signals = conn->signals;
    conn->signals = 0;
    pthread_mutex_unlock(&net->lock);
    serve(conn, signals);
    pthread_mutex_lock(&net->lock);
}

void tb_loop_serve(tb_loop *loop) {
    tb_net *net = loop->net;
    /* As many as wait now: one that has more to do comes again after the events were looked at. */
    pthread_mutex_lock(&net->lock);
    tb_conn *list = loop->runnable;
    loop->runnable = NULL;
    loop->runnable_end = &loop->runnable;
    while (list != NULL) {
        serve_first(net, &list);
    }
    pthread_mutex_unlock(&net->lock);
}

bool tb_loop_serve_next(tb_loop *loop) {
    tb_net *net = loop->net;
    pthread_mutex_lock(&net->lock);
    tb_conn *first = loop->runnable;
    if (first != NULL) {
        loop->runnable = first->next_runnable;
        if (loop->runnable == NULL) {
            loop->runnable_end = &loop->runnable;
        }
        first->next_runnable = NULL;
        tb_conn *list = first;
        serve_first(net, &list);
    }
    pthread_mutex_unlock(&net->lock);
    return first != NULL;
}

void tb_loop_sweep(tb_loop *loop) {
    loop->sweep = false;
    for (tb_conn *conn = loop->conns; conn != NULL; conn = conn->next) {
        tb_conn_let_go(conn, false);
    }
}

void tb_loop_end(tb_loop *loop) {
    tb_conn *conn;
    do {
        pthread_mutex_lock(&loop->net->lock);
        conn = loop->conns;
        pthread_mutex_unlock(&loop->net->lock);
        if (conn != NULL) {
            tb_conn_end(conn);
        }
    } while (conn != NULL);
}
