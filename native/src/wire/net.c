/*
 * What a session's connections have in common: events for the caller, timers, peers. The session's lock is held but for
 * init and free.
 */
#include "wire/net.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/error.h"
#include "wire/conn.h"
#include "wire/loop.h"
#include "wire/peer.h"

/* That wait to be taken, and that are told one by one. */
enum { MOST_FAULTS = 256, FAULTS_A_SECOND = 16 };
#define SECOND_NS 1000000000ull

/* ---- opening and freeing ------------------------------------------------------------------------------- */

int32_t tb_net_init(tb_net *net, const tb_session_options *options, const tb_backend *backend,
                    const tb_peer_handler *handler, int32_t *event_fd, tb_error *err) {
    int ends[2] = {-1, -1};
    pthread_mutex_init(&net->lock, NULL);
    net->options = *options;
    net->backend = backend;
    net->handler = handler;
    net->events_end = &net->events;
    net->event_read = -1;
    net->listen_fd = -1;
    net->spare_fd = -1;
    net->next_timer = UINT64_MAX;
    net->peers = calloc((size_t)options->world, sizeof(tb_peer *));
    if (net->peers == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a session of %d ranks", options->world);
    }
    if (getrandom(&net->incarnation, sizeof net->incarnation, 0) != sizeof net->incarnation
        || pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "the session's pipe");
    }
    net->event_write = ends[1];
    net->event_read = fcntl(ends[0], F_DUPFD_CLOEXEC, 0);
    if (net->event_read < 0) {
        int os_errno = errno;
        close(ends[0]);
        close(ends[1]);
        return tb_fail(err, TB_ESYSTEM, -1, os_errno, "the session's pipe");
    }
    *event_fd = ends[0];
    return TB_OK;
}

void tb_net_free(tb_net *net) {
    for (int32_t rank = 0; net->peers != NULL && rank < net->options.world; rank++) {
        if (net->peers[rank] != NULL) {
            tb_peer_free(net->peers[rank]);
        }
    }
    while (net->events != NULL) {
        tb_event_node *node = net->events;
        net->events = node->next;
        free(node);
    }
    if (net->event_read >= 0) {
        close(net->event_read);
        close(net->event_write);
    }
    net->backend->free(net);
    free(net->peers);
    pthread_mutex_destroy(&net->lock);
}

/* ---- events -------------------------------------------------------------------------------------------- */

void tb_net_event_reserved(tb_net *net, const tb_event *event, tb_event_node **reserved) {
    tb_event_node *node = *reserved;
    bool first = net->events == NULL;
    /* Whoever closes the session waits for one event more, and for no other. */
    if ((net->closing && event->kind != TB_EVENT_ENDED) || node == NULL) {
        return;
    }
    *reserved = NULL;
    node->next = NULL;
    node->event = *event;
    *net->events_end = node;
    net->events_end = &node->next;
    if (first) {
        /* The pipe is empty, or holds a byte that was not read yet; both will be seen. */
        ssize_t written = write(net->event_write, "", 1);
        (void)written;
    }
}

bool tb_net_event(tb_net *net, const tb_event *event) {
    tb_event_node *node = malloc(sizeof *node);
    bool made = node != NULL;
    tb_net_event_reserved(net, event, &node);
    bool taken = made && node == NULL;
    free(node);
    return taken;
}

/* Strangers cause them, as many as they like: those that nobody takes are not kept for ever. */
static void tell_fault(tb_net *net, const tb_error *error) {
    tb_event event = {.kind = TB_EVENT_FAULT, .error = *error};
    net->faults_told++;
    if (net->fault_count < MOST_FAULTS && tb_net_event(net, &event)) {
        net->fault_count++;
    }
}

/* Sums up what the last second has left out; *next becomes when that is due. */
static void sum_faults(tb_net *net, uint64_t now, uint64_t *next) {
    if (now < net->fault_second + SECOND_NS) {
        tb_sooner(next, net->faults_left_out > 0 ? net->fault_second + SECOND_NS : 0);
        return;
    }
    net->fault_second = now;
    net->faults_told = 0;
    if (net->faults_left_out > 0) {
        tb_error sum;
        const tb_error *last = &net->fault_left_out;
        tb_fail(&sum, last->code, last->rank, 0, "%u more faults; the last: %s", net->faults_left_out, last->message);
        net->faults_left_out = 0;
        tell_fault(net, &sum);
    }
}

void tb_net_fault(tb_net *net, const tb_error *error) {
    uint64_t next = UINT64_MAX;
    sum_faults(net, tb_now(), &next);
    if (net->faults_told < FAULTS_A_SECOND) {
        tell_fault(net, error);
        return;
    }
    net->faults_left_out++;
    net->fault_left_out = *error;
    tb_net_timer(net, net->fault_second + SECOND_NS);
}

void tb_net_next_event(tb_net *net, tb_event *event) {
    tb_event_node *node = net->events;
    if (node == NULL) {
        memset(event, 0, sizeof *event);
        return;
    }
    *event = node->event;
    net->fault_count -= event->kind == TB_EVENT_FAULT;
    net->question_count -= event->kind == TB_EVENT_HANDSHAKE && event->handshake_role == 1;
    net->events = node->next;
    if (net->events == NULL) {
        net->events_end = &net->events;
        char bytes[8];
        ssize_t drained = read(net->event_read, bytes, sizeof bytes);
        (void)drained; /* whoever watches the pipe may have been faster */
    }
    free(node);
}

/* ---- peers --------------------------------------------------------------------------------------------- */

tb_peer *tb_net_peer(tb_net *net, int32_t rank) {
    tb_peer *peer = net->peers[rank];
    if (peer == NULL) {
        peer = calloc(1, sizeof *peer);
        if (peer != NULL) {
            peer->net = net;
            peer->rank = rank;
            net->peers[rank] = peer;
        }
    }
    return peer;
}

/* ---- timers -------------------------------------------------------------------------------------------- */

void tb_sooner(uint64_t *next, uint64_t at) {
    if (at != 0 && at < *next) {
        *next = at;
    }
}

void tb_net_timer(tb_net *net, uint64_t at) {
    if (at < net->next_timer) {
        net->next_timer = at;
        tb_loop_wake(net->loops[0]);
    }
}

static void check_conns(tb_net *net, uint64_t now, uint64_t *next) {
    for (uint32_t i = 0; i < net->loop_count; i++) {
        for (tb_conn *conn = net->loops[i]->conns; conn != NULL; conn = conn->next) {
            if (conn->deadline != 0 && now >= conn->deadline) {
                tb_conn_doom(conn);
            } else {
                tb_sooner(next, conn->deadline);
            }
        }
    }
}

static void check_peers(tb_net *net, uint64_t now, uint64_t *next) {
    for (int32_t rank = 0; rank < net->options.world; rank++) {
        tb_peer *peer = net->peers[rank];
        if (peer == NULL) {
            continue;
        }
        if (peer->retry_at != 0 && now >= peer->retry_at) {
            peer->retry_at = 0;
            net->backend->connect(net, peer);
        }
        tb_sooner(next, peer->retry_at);
    }
}

void tb_net_run_timers(tb_net *net, uint64_t now, uint64_t *next) {
    if (!net->closing) {
        if (net->backend->pings) {
            tb_peers_tick(net);
            tb_sooner(next, net->next_tick);
        }
        net->accept_pending |= net->accept_at != 0 && now >= net->accept_at;
        tb_sooner(next, net->accept_at > now ? net->accept_at : 0);
        check_peers(net, now, next);
        sum_faults(net, now, next);
    }
    check_conns(net, now, next);
}
