/*
 * The memory back end: sessions of one hub, in one process, find each other there. A hub's lock is taken before a
 * session's, never after it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/conn.h"
#include "base/error.h"
#include "base/handle.h"
#include "wire/memory_link.h"
#include "wire/loop.h"
#include "wire/peer.h"

/* An end of a link that waits for its session to take it. */
typedef struct offer {
    struct offer *next;
    tb_net *to;
    int32_t from;
    tb_link link;
} offer;

typedef struct member {
    struct member *next;
    tb_net *net;
} member;

/* The lock is taken before that of a session, never after it. */
struct tb_hub {
    pthread_mutex_t lock;
    member *members;
    offer *offers;
    uint32_t users; /* the handle, and the members */
};

int32_t tb_hub_create(uint64_t *handle, tb_error *err) {
    struct tb_hub *hub = calloc(1, sizeof *hub);
    if (hub == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a hub");
    }
    pthread_mutex_init(&hub->lock, NULL);
    hub->users = 1;
    int32_t code = tb_handle_add(TB_HANDLE_HUB, hub, NULL, handle, err);
    if (code != TB_OK) {
        pthread_mutex_destroy(&hub->lock);
        free(hub);
    }
    return code;
}

static void let_hub_go(struct tb_hub *hub) {
    pthread_mutex_lock(&hub->lock);
    bool last = --hub->users == 0;
    pthread_mutex_unlock(&hub->lock);
    if (last) {
        pthread_mutex_destroy(&hub->lock);
        free(hub);
    }
}

int32_t tb_hub_destroy(uint64_t handle, tb_error *err) {
    struct tb_hub *hub = tb_handle_take(TB_HANDLE_HUB, handle, err);
    if (hub == NULL) {
        return TB_ECLOSED;
    }
    let_hub_go(hub);
    return TB_OK;
}

static void call_net(tb_net *net) {
    pthread_mutex_lock(&net->lock);
    net->accept_pending = true;
    tb_loop_wake(net->loops[0]);
    pthread_mutex_unlock(&net->lock);
}

static member *find_rank(struct tb_hub *hub, int32_t rank) {
    member *at = hub->members;
    while (at != NULL && at->net->options.rank != rank) {
        at = at->next;
    }
    return at;
}

static int32_t join_hub(struct tb_hub *hub, tb_net *net, tb_error *err) {
    member *new = malloc(sizeof *new);
    if (new == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a member of a hub");
    }
    pthread_mutex_lock(&hub->lock);
    if (find_rank(hub, net->options.rank) != NULL) {
        pthread_mutex_unlock(&hub->lock);
        free(new);
        return tb_fail(err, TB_EADDRESS_IN_USE, -1, 0, "rank %d of this hub is open already",
                       net->options.rank);
    }
    for (member *at = hub->members; at != NULL; at = at->next) {
        call_net(at->net); /* who waits for this rank can connect now */
    }
    new->net = net;
    new->next = hub->members;
    hub->members = new;
    hub->users++;
    net->hub = hub;
    pthread_mutex_unlock(&hub->lock);
    return TB_OK;
}

static int32_t memory_open(tb_net *net, tb_error *err) {
    uint64_t handle = net->options.hub;
    struct tb_hub *hub = tb_handle_get(TB_HANDLE_HUB, handle, err);
    if (hub == NULL) {
        return TB_ECLOSED;
    }
    int32_t code = join_hub(hub, net, err);
    tb_handle_put(handle);
    return code;
}

static void memory_close(tb_net *net) {
    struct tb_hub *hub = net->hub;
    pthread_mutex_lock(&hub->lock);
    for (member **at = &hub->members; *at != NULL; at = &(*at)->next) {
        if ((*at)->net == net) {
            member *gone = *at;
            *at = gone->next;
            free(gone);
            break;
        }
    }
    for (offer **at = &hub->offers; *at != NULL;) {
        offer *made = *at;
        if (made->to == net) {
            *at = made->next;
            made->link.kind->close(&made->link);
            free(made);
        } else {
            at = &made->next;
        }
    }
    pthread_mutex_unlock(&hub->lock);
}

/* A thread of the session may be in the hub until it has ended. */
static void memory_free(tb_net *net) {
    if (net->hub != NULL) {
        let_hub_go(net->hub);
    }
}

/* The lower rank connects. */
static void memory_connect(tb_net *net, tb_peer *peer) {
    if (net->options.rank < peer->rank) {
        net->accept_pending = true;
        tb_loop_wake(net->loops[0]);
    }
}

/* A connection with that rank over this link, which its thread opens. The hub's lock is held. */
static void make_conn(tb_net *net, tb_link *link, int32_t rank) {
    pthread_mutex_lock(&net->lock);
    tb_conn *conn = net->closing ? NULL : tb_conn_create(net, link, TB_CONN_CONNECTING);
    if (conn != NULL) {
        conn->rank = rank;
        conn->readable = true;
        conn->writable = true;
        tb_conn_kick(conn);
    }
    pthread_mutex_unlock(&net->lock);
    if (conn == NULL) {
        link->kind->close(link);
    }
}

static bool same_job(const tb_session_options *a, const tb_session_options *b) {
    return a->generation == b->generation && a->world == b->world
           && memcmp(a->name_space, b->name_space, sizeof a->name_space) == 0;
}

static void offer_link(struct tb_hub *hub, tb_net *net, tb_net *other) {
    tb_link ends[2];
    offer *made = malloc(sizeof *made);
    if (made == NULL || !tb_pipe_create(ends)) {
        free(made); /* the prepare that wants it ends at its deadline */
        return;
    }
    *made = (offer){hub->offers, other, net->options.rank, ends[1]};
    hub->offers = made;
    make_conn(net, &ends[0], other->options.rank);
    call_net(other);
}

/* The next rank from `from` on that this session is to connect with; marked as being connected. */
static int32_t next_wanted(tb_net *net, int32_t from) {
    int32_t rank = from > net->options.rank ? from : net->options.rank + 1;
    pthread_mutex_lock(&net->lock);
    for (; rank < net->options.world; rank++) {
        tb_peer *peer = net->peers[rank];
        if (peer != NULL && net->handler->wanted(peer) && !peer->up && !peer->connecting) {
            break;
        }
    }
    pthread_mutex_unlock(&net->lock);
    return rank;
}

static void connect_wanted(struct tb_hub *hub, tb_net *net) {
    for (int32_t rank = next_wanted(net, 0); rank < net->options.world;
         rank = next_wanted(net, rank + 1)) {
        member *other = find_rank(hub, rank);
        if (other == NULL) {
            continue; /* it will call when it is there */
        }
        bool same = same_job(&net->options, &other->net->options);
        pthread_mutex_lock(&net->lock);
        if (same) {
            net->peers[rank]->connecting = true;
        } else {
            char message[96];
            snprintf(message, sizeof message, "rank %d has another namespace, generation or world", rank);
            net->handler->unreachable(net->peers[rank], TB_EAUTH, 0, message);
        }
        pthread_mutex_unlock(&net->lock);
        if (same) {
            offer_link(hub, net, other->net);
        }
    }
}

static void memory_accept(tb_net *net) {
    struct tb_hub *hub = net->hub;
    pthread_mutex_lock(&hub->lock);
    for (offer **at = &hub->offers; *at != NULL;) {
        offer *made = *at;
        if (made->to == net) {
            *at = made->next;
            make_conn(net, &made->link, made->from);
            free(made);
        } else {
            at = &made->next;
        }
    }
    connect_wanted(hub, net);
    pthread_mutex_unlock(&hub->lock);
}

/* In its own thread: so the pipe can tell it of bytes from the first one on, and nobody ends it meanwhile. */
static void memory_establish(tb_conn *conn) {
    tb_net *net = conn->net;
    tb_pipe_attach(&conn->link, conn);
    pthread_mutex_lock(&net->lock);
    tb_peer *peer = net->closing ? NULL : tb_net_peer(net, conn->rank);
    if (peer != NULL && peer->up) {
        tb_peer_lost(peer, TB_EPEER_LOST, 0, "it came back as another one", true);
    }
    if (peer != NULL) {
        peer->connections = 1;
        tb_conn_open(conn, peer, 0);
    } else {
        conn->doomed = true;
    }
    pthread_mutex_unlock(&net->lock);
}

/* A link of memory is there or not; nothing ends between. */
static void memory_ended(tb_conn *conn) {
    (void)conn;
}

const tb_backend tb_backend_memory = {
    .pings = false,
    .open = memory_open,
    .close = memory_close,
    .free = memory_free,
    .connect = memory_connect,
    .accept = memory_accept,
    .establish = memory_establish,
    .ended = memory_ended,
};
