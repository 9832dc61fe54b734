/* The life of a connection. conn.h says what needs the lock. */
#include "wire/conn.h"
#include "wire/loop.h"
#include "wire/peer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>


/* The most control frames that wait: a peer that reads so slowly has stopped, and is lost with its connection. */
enum { MOST_CONTROL_BYTES = 64 * 1024 * 1024 };

tb_conn *tb_conn_create(tb_net *net, const tb_link *link, enum tb_conn_state state) {
    tb_conn *conn = calloc(1, sizeof *conn);
    if (conn != NULL) {
        conn->read_buffer = malloc(TB_READ_BYTES);
        conn->frames = malloc(TB_BATCH * sizeof *conn->frames);
    }
    if (conn == NULL || conn->read_buffer == NULL || conn->frames == NULL) {
        if (conn != NULL) {
            free(conn->frames);
            free(conn->read_buffer);
            free(conn);
        }
        return NULL;
    }
    tb_loop *loop = net->loops[net->next_loop++ % net->loop_count];
    conn->net = net;
    conn->loop = loop;
    conn->link = *link;
    conn->state = state;
    conn->rank = -1;
    conn->reach = TB_IOVECS;
    conn->next = loop->conns;
    if (loop->conns != NULL) {
        loop->conns->before = conn;
    }
    loop->conns = conn;
    return conn;
}

void tb_conn_kick(tb_conn *conn) {
    if (conn->runnable) {
        return;
    }
    tb_loop *loop = conn->loop;
    conn->runnable = true;
    conn->next_runnable = NULL;
    *loop->runnable_end = conn;
    loop->runnable_end = &conn->next_runnable;
    tb_loop_wake(loop);
}

void tb_conn_signal(tb_conn *conn, uint8_t signals) {
    pthread_mutex_lock(&conn->net->lock);
    conn->signals |= signals;
    tb_conn_kick(conn);
    pthread_mutex_unlock(&conn->net->lock);
}

void tb_conn_doom(tb_conn *conn) {
    conn->doomed = true;
    tb_conn_kick(conn);
}

static bool make_room(tb_conn *conn, uint64_t bytes) {
    uint64_t needed = conn->control_bytes + bytes;
    if (needed <= conn->control_room) {
        return true;
    }
    if (needed > MOST_CONTROL_BYTES) {
        return false;
    }
    uint64_t room = needed * 2 < 4096 ? 4096 : needed * 2;
    uint8_t *larger = realloc(conn->control, room);
    if (larger == NULL) {
        return false;
    }
    conn->control = larger;
    conn->control_room = (uint32_t)room;
    return true;
}

void tb_conn_say_bytes(tb_conn *conn, const void *bytes, uint64_t count) {
    if (conn->doomed) {
        return;
    }
    if (!make_room(conn, count)) {
        tb_conn_doom(conn); /* a peer that does not learn of something must not wait for it */
        return;
    }
    memcpy(conn->control + conn->control_bytes, bytes, count);
    conn->control_bytes += (uint32_t)count;
    tb_conn_kick(conn);
}

void tb_conn_say(tb_conn *conn, const tb_wire_header *header, const void *body) {
    tb_wire_header sealed = *header;
    tb_wire_seal(&sealed);
    tb_conn_say_bytes(conn, &sealed, sizeof sealed);
    if (sealed.body_bytes > 0) {
        uint32_t check = tb_crc32c(0, body, sealed.body_bytes);
        tb_conn_say_bytes(conn, body, sealed.body_bytes);
        tb_conn_say_bytes(conn, &check, sizeof check);
    }
}

void tb_conn_open(tb_conn *conn, tb_peer *peer, uint32_t index) {
    conn->state = TB_CONN_OPEN;
    conn->deadline = 0;
    conn->peer = peer;
    conn->index = index;
    peer->conns[index] = conn;
    peer->open++;
    tb_conn_kick(conn);
    if (peer->open == peer->connections) {
        tb_peer_up(peer);
    }
}

/* A frame of which nothing has gone out yet is dropped; one that has begun must be filled up. */
static void let_frame_go(tb_conn *conn, uint32_t *kept, uint32_t index, bool all) {
    tb_frame *frame = &conn->frames[index % TB_BATCH];
    tb_stream *stream = frame->stream;
    bool stale = stream != NULL && (all || atomic_load(&stream->stop));
    if (stale) {
        frame->stream = NULL;
        conn->net->handler->let_go(stream);
    }
    if (!stale || frame->sent > 0) {
        uint32_t to = (conn->first_frame + (*kept)++) % TB_BATCH;
        if (to != index % TB_BATCH) {
            conn->frames[to] = *frame;
        }
    }
}

void tb_conn_let_go(tb_conn *conn, bool all) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < conn->frame_count; i++) {
        let_frame_go(conn, &kept, conn->first_frame + i, all);
    }
    conn->frame_count = kept;
    tb_stream *stream = conn->arrival.stream;
    if (stream != NULL && (all || atomic_load(&stream->stop))) {
        conn->arrival.stream = NULL;
        conn->net->handler->let_go(stream);
    }
}

void tb_conn_close_orderly(tb_conn *conn, uint64_t deadline) {
    conn->state = TB_CONN_CLOSING;
    conn->deadline = deadline;
    tb_conn_kick(conn);
}

static void unlink_conn(tb_conn *conn) {
    tb_loop *loop = conn->loop;
    for (tb_conn **at = &loop->runnable; conn->runnable && *at != NULL; at = &(*at)->next_runnable) {
        if (*at == conn) {
            *at = conn->next_runnable;
            loop->runnable_end = *at == NULL ? at : loop->runnable_end;
            break;
        }
    }
    if (conn->before != NULL) {
        conn->before->next = conn->next;
    } else {
        loop->conns = conn->next;
    }
    if (conn->next != NULL) {
        conn->next->before = conn->before;
    }
}

void tb_conn_end(tb_conn *conn) {
    tb_net *net = conn->net;
    conn->link.kind->close(&conn->link); /* nobody signals it from here on */
    pthread_mutex_lock(&net->lock);
    conn->doomed = true;
    if (!net->closing && (conn->peer == NULL || !conn->peer->up)) {
        net->backend->ended(conn);
    }
    if (conn->peer != NULL) {
        tb_peer_lost(conn->peer, TB_EPEER_LOST, 0, "the connection ended", conn->state == TB_CONN_CLOSING);
    }
    tb_conn_let_go(conn, true);
    if (conn->handshake != NULL && conn->handshake->counted) {
        net->half_open--;
    }
    unlink_conn(conn);
    pthread_mutex_unlock(&net->lock);
    free(conn->handshake);
    free(conn->sending);
    free(conn->control);
    free(conn->frames);
    free(conn->read_buffer);
    free(conn);
}

void tb_conn_fail(tb_conn *conn, int32_t code, int os_errno, const char *message) {
    tb_net *net = conn->net;
    pthread_mutex_lock(&net->lock);
    if (conn->peer != NULL) {
        conn->peer->left |= conn->ended;
        tb_peer_lost(conn->peer, code, os_errno, message, false);
    }
    conn->doomed = true;
    pthread_mutex_unlock(&net->lock);
}
