/*
 * Connecting: the lower rank of a pair connects as soon as it knows the address, and tries again as long as that makes
 * sense. The session's lock is held, except in the connection's own thread (tb_tcp_establish).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/handle.h"
#include "wire/tcp.h"
#include "wire/peer.h"

/* A port that refuses may be about to be opened; after this long nobody will. */
#define PATIENCE_NS 2000000000ull
#define FIRST_PAUSE_NS 10000000ull
enum { DOUBLINGS = 5 };

static bool is_wanted(const tb_peer *peer) {
    return peer->net->handler->wanted(peer);
}

static int start_connection(tb_net *net, tb_peer *peer, uint32_t index) {
    int fd = socket(peer->address->at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return errno;
    }
    int error = tb_tcp_configure(net, fd);
    if (error == 0 && connect(fd, (struct sockaddr *)&peer->address->at, peer->address->length) != 0
        && errno != EINPROGRESS) {
        error = errno;
    }
    if (error != 0) {
        close(fd);
        return error;
    }
    tb_link link = tb_tcp_link(fd);
    tb_handshake *shake =
        tb_handshake_create(net, false, peer->rank, index, net->options.connections);
    tb_conn *conn = shake == NULL ? NULL : tb_conn_create(net, &link, TB_CONN_CONNECTING);
    if (conn == NULL) {
        free(shake);
        close(fd);
        return ENOMEM;
    }
    shake->number = ++net->connection_count;
    conn->handshake = shake;
    conn->rank = peer->rank;
    error = tb_tcp_watch(conn);
    if (error != 0) {
        conn->end_errno = error;
        tb_conn_doom(conn);
    }
    return 0;
}

static void retry(tb_peer *peer, int os_errno) {
    tb_net *net = peer->net;
    uint64_t now = tb_now();
    peer->connecting = false;
    if (!is_wanted(peer)) {
        return;
    }
    if (os_errno != 0 && now - peer->first_try >= PATIENCE_NS) {
        char message[64];
        snprintf(message, sizeof message, "rank %d cannot be reached", peer->rank);
        net->handler->unreachable(peer, TB_ECONNECT, os_errno, message);
        return;
    }
    peer->retry_at = now + (FIRST_PAUSE_NS << (peer->tries < DOUBLINGS ? peer->tries : DOUBLINGS));
    peer->tries++;
    tb_net_timer(net, peer->retry_at);
}

void tb_tcp_connect(tb_net *net, tb_peer *peer) {
    if (net->options.rank > peer->rank || !peer->has_address || peer->connecting || peer->up
        || !is_wanted(peer)) {
        return;
    }
    peer->connecting = true;
    for (uint32_t i = 0; i < net->options.connections && peer->connecting; i++) {
        int error = start_connection(net, peer, i);
        if (error != 0) {
            retry(peer, error);
        }
    }
}

/* The others of its set end with it. */
void tb_tcp_ended(tb_conn *conn) {
    tb_net *net = conn->net;
    tb_peer *peer =
        conn->rank >= 0 && conn->rank < net->options.world ? net->peers[conn->rank] : NULL;
    bool ours = peer != NULL && net->options.rank < conn->rank;
    if (!ours || !peer->connecting || (conn->handshake != NULL && conn->handshake->refused)) {
        return;
    }
    for (uint32_t i = 0; i < net->loop_count; i++) {
        for (tb_conn *other = net->loops[i]->conns; other != NULL; other = other->next) {
            if (other->rank == conn->rank && other != conn && other->state != TB_CONN_CLOSING) {
                tb_conn_doom(other);
            }
        }
    }
    retry(peer, conn->end_errno);
}

static void finish_connect(tb_conn *conn) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(conn->link.fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) {
        error = errno;
    }
    if (error != 0) {
        conn->end_errno = error;
        conn->doomed = true;
        return;
    }
    tb_net *net = conn->net;
    pthread_mutex_lock(&net->lock);
    conn->state = TB_CONN_HANDSHAKE;
    conn->deadline = tb_now() + (uint64_t)HANDSHAKE_SECONDS * 1000000000;
    tb_net_timer(net, conn->deadline);
    pthread_mutex_unlock(&net->lock);
}

void tb_tcp_establish(tb_conn *conn) {
    if (conn->state == TB_CONN_CONNECTING && conn->writable) {
        finish_connect(conn);
    }
    if (conn->state == TB_CONN_HANDSHAKE && !conn->doomed) {
        tb_handshake_advance(conn);
    }
}

static int32_t set_peer(tb_net *net, int32_t rank, const struct tb_address *address, tb_error *err) {
    tb_peer *peer = tb_net_peer(net, rank);
    if (peer != NULL && peer->address == NULL) {
        peer->address = malloc(sizeof *address);
    }
    if (peer == NULL || peer->address == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for the address of rank %d", rank);
    }
    *peer->address = *address;
    peer->has_address = true;
    if (is_wanted(peer)) {
        tb_peer_want(peer);
    }
    return TB_OK;
}

int32_t tb_session_set_peer(uint64_t handle, int32_t rank, const char *host, uint32_t port, tb_error *err) {
    tb_net *net = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (net == NULL) {
        return TB_ECLOSED;
    }
    struct tb_address address;
    int32_t code;
    if (net->options.kind != TB_BACKEND_TCP) {
        code = tb_fail(err, TB_EUNSUPPORTED, -1, 0, "this transport has no addresses");
    } else if (rank < 0 || rank >= net->options.world || rank == net->options.rank) {
        code = tb_fail(err, TB_EUNSUPPORTED, -1, 0, "rank %d is not a peer", rank);
    } else {
        code = tb_tcp_parse(host, port, &address, err);
    }
    if (code == TB_OK) {
        pthread_mutex_lock(&net->lock);
        code = net->closing ? TB_OK : set_peer(net, rank, &address, err);
        pthread_mutex_unlock(&net->lock);
    }
    tb_handle_put(handle);
    return code;
}
