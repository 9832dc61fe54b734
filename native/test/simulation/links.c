/* Links whose bytes arrive when the scheduler says so, in parts, and which it can break. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flow/flow_parts.h"
#include "sim.h"
#include "wire/conn.h"
#include "wire/peer.h"

static ssize_t copy(sim_ring *ring, const struct iovec *iov, int count, uint64_t most, bool write) {
    uint64_t moved = 0;
    for (int i = 0; i < count; i++) {
        for (uint64_t at = 0; at < iov[i].iov_len && moved < most;) {
            uint8_t *byte = (uint8_t *)iov[i].iov_base + at;
            uint64_t place = (write ? ring->written : ring->read) % SIM_RING;
            uint64_t part = tb_least(tb_least(iov[i].iov_len - at, most - moved), SIM_RING - place);
            memcpy(write ? ring->bytes + place : byte, write ? byte : ring->bytes + place, part);
            *(write ? &ring->written : &ring->read) += part;
            moved += part;
            at += part;
        }
    }
    return (ssize_t)moved;
}

static uint64_t bytes_of(const struct iovec *iov, int count) {
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

static ssize_t sim_readv(tb_link *link, const struct iovec *iov, int count) {
    sim_link *pipe = link->pipe;
    int other = 1 - link->end;
    sim_ring *from = &pipe->rings[other];
    uint64_t room = bytes_of(iov, count);
    uint64_t most = from->visible - from->read;
    most = most < room ? most : room;
    if (most == 0) {
        bool ended = (from->finished || pipe->closed[other]) && from->read == from->written && from->told_end;
        return pipe->cut != 0 ? -pipe->cut : ended ? 0 : -EAGAIN;
    }
    bool was_full = from->written - from->read == SIM_RING;
    ssize_t got = copy(from, iov, count, most, false);
    if (was_full && pipe->conns[other] != NULL) {
        tb_conn_signal(pipe->conns[other], TB_CONN_WRITABLE);
    }
    if (from->read == from->written && from->told_end) {
        tb_conn_signal(pipe->conns[link->end], TB_CONN_READABLE); /* the end itself is still to be read */
    }
    return got;
}

static ssize_t sim_writev(tb_link *link, const struct iovec *iov, int count) {
    sim_link *pipe = link->pipe;
    sim_ring *to = &pipe->rings[link->end];
    uint64_t asked = bytes_of(iov, count);
    uint64_t most = SIM_RING - (to->written - to->read);
    if (pipe->cut != 0 || pipe->closed[1 - link->end]) {
        return pipe->cut != 0 ? -pipe->cut : -EPIPE;
    }
    if (most == 0) {
        return -EAGAIN;
    }
    most = most < asked ? most : asked;
    /* A link takes less than it is offered now and then: then it says when it takes more. */
    if (sim_random(4) == 0) {
        most = 1 + sim_random(most);
    }
    ssize_t moved = copy(to, iov, count, most, true);
    if ((uint64_t)moved < asked && to->written - to->read < SIM_RING) {
        tb_conn_signal(pipe->conns[link->end], TB_CONN_WRITABLE);
    }
    return moved;
}

static void sim_finish(tb_link *link) {
    link->pipe->rings[link->end].finished = true;
}

static void sim_close(tb_link *link) {
    link->pipe->closed[link->end] = true;
    link->pipe->conns[link->end] = NULL;
}

static bool sim_name(const tb_link *link, tb_link_name *name) {
    (void)link;
    (void)name;
    return false; /* no session is taken for one of this process */
}

static const tb_link_kind kind = {sim_readv, sim_writev, sim_finish, sim_close, sim_name};

bool sim_can_deliver(const sim_link *link, int end) {
    const sim_ring *ring = &link->rings[end];
    bool ends = ring->finished || link->closed[end] || link->cut != 0;
    return link->used && link->conns[1 - end] != NULL && (ring->visible < ring->written || (ends && !ring->told_end));
}

void sim_deliver(sim_link *link, int end) {
    sim_ring *ring = &link->rings[end];
    uint64_t waiting = ring->written - ring->visible;
    ring->visible += waiting == 0 ? 0 : sim_random(3) == 0 ? 1 + sim_random(waiting) : waiting;
    ring->told_end = ring->visible == ring->written && (ring->finished || link->closed[end] || link->cut != 0);
    tb_conn_signal(link->conns[1 - end], TB_CONN_READABLE | (ring->told_end ? TB_CONN_WRITABLE : 0));
}

void sim_cut(sim_link *link, int os_errno) {
    link->cut = os_errno;
    for (int end = 0; end < 2; end++) {
        link->rings[end].told_end = false;
        link->rings[end].written = link->rings[end].visible; /* what was on its way is lost */
    }
}

/* ---- the back end -------------------------------------------------------------------------------------- */

static int32_t back_open(tb_net *net, tb_error *err) {
    (void)net;
    (void)err;
    return TB_OK;
}

static void back_close(tb_net *net) {
    (void)net;
}

static void back_connect(tb_net *net, tb_peer *peer) {
    if (net->options.rank < peer->rank) {
        the_sim->wanted[net->options.rank][peer->rank] = true;
    }
}

static void back_establish(tb_conn *conn) {
    tb_net *net = conn->net;
    pthread_mutex_lock(&net->lock);
    tb_peer *peer = net->closing ? NULL : tb_net_peer(net, conn->rank);
    if (peer != NULL && peer->up) {
        tb_peer_lost(peer, TB_EPEER_LOST, 0, "it came back as another one", true);
    }
    if (peer != NULL) {
        peer->connections = the_sim->connections;
        tb_conn_open(conn, peer, conn->link.pipe->index);
    } else {
        conn->doomed = true;
    }
    pthread_mutex_unlock(&net->lock);
}

/* If a set of connections is being made, the others end with it. */
static void back_ended(tb_conn *conn) {
    tb_peer *peer = conn->rank >= 0 ? conn->net->peers[conn->rank] : NULL;
    if (peer == NULL) {
        return;
    }
    peer->connecting = false;
    for (uint32_t i = 0; i < conn->net->loop_count; i++) {
        for (tb_conn *other = conn->net->loops[i]->conns; other != NULL; other = other->next) {
            if (other != conn && other->rank == conn->rank && other->peer == NULL) {
                tb_conn_doom(other);
            }
        }
    }
}

const tb_backend sim_backend = {
    .open = back_open,
    .close = back_close,
    .free = back_close,
    .connect = back_connect,
    .accept = back_close,
    .establish = back_establish,
    .ended = back_ended,
};

static void make_end(sim_link *link, int end) {
    tb_session *session = the_sim->ranks[link->ranks[end]].session;
    tb_link made = {.kind = &kind, .fd = -1, .pipe = link, .end = end};
    pthread_mutex_lock(&session->lock);
    tb_conn *conn = tb_conn_create(&session->net, &made, TB_CONN_CONNECTING);
    conn->rank = link->ranks[1 - end];
    conn->readable = true;
    conn->writable = true;
    link->conns[end] = conn;
    tb_conn_kick(conn);
    pthread_mutex_unlock(&session->lock);
}

static sim_link *free_link(void) {
    static uint8_t bytes[SIM_LINKS][2][SIM_RING];
    for (int i = 0; i < SIM_LINKS; i++) {
        sim_link *link = &the_sim->links[i];
        if (!link->used || (link->closed[0] && link->closed[1])) {
            *link = (sim_link){.used = true};
            link->rings[0].bytes = bytes[i][0];
            link->rings[1].bytes = bytes[i][1];
            return link;
        }
    }
    sim_fail("there are more links than the simulation has room for");
}

bool sim_connect(void) {
    for (int from = 0; from < SIM_RANKS; from++) {
        for (int to = from + 1; to < SIM_RANKS; to++) {
            sim_rank *ends[2] = {&the_sim->ranks[from], &the_sim->ranks[to]};
            tb_peer *peer = ends[0]->session == NULL ? NULL : ends[0]->session->peers[to];
            bool can = the_sim->wanted[from][to] && ends[0]->alive && ends[1]->alive;
            the_sim->wanted[from][to] = the_sim->wanted[from][to] && !can;
            if (!can || peer->up || peer->connecting) {
                continue;
            }
            peer->connecting = true;
            for (uint32_t i = 0; i < the_sim->connections; i++) {
                sim_link *link = free_link();
                link->ranks[0] = from;
                link->ranks[1] = to;
                link->index = i;
                make_end(link, 0);
                make_end(link, 1);
            }
            return true;
        }
    }
    return false;
}
