/* The memory back end: sessions of one hub, in one process, find each other there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/conn.h"
#include "base/error.h"
#include "base/handle.h"
#include "wire/memory_link.h"

/* An end of a link that waits for its session to take it. */
typedef struct offer {
    struct offer *next;
    tb_session *to;
    int32_t from;
    tb_link link;
} offer;

typedef struct member {
    struct member *next;
    tb_session *session;
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
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a hub");
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

static void call_session(tb_session *session) {
    pthread_mutex_lock(&session->lock);
    session->accept_pending = true;
    tb_thread_wake(&session->threads[0]);
    pthread_mutex_unlock(&session->lock);
}

static member *find_rank(struct tb_hub *hub, int32_t rank) {
    member *at = hub->members;
    while (at != NULL && at->session->options.rank != rank) {
        at = at->next;
    }
    return at;
}

static int32_t join_hub(struct tb_hub *hub, tb_session *session, tb_error *err) {
    member *new = malloc(sizeof *new);
    if (new == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a member of a hub");
    }
    pthread_mutex_lock(&hub->lock);
    if (find_rank(hub, session->options.rank) != NULL) {
        pthread_mutex_unlock(&hub->lock);
        free(new);
        return tb_fail(err, TB_EADDRESS_IN_USE, -1, 0, "rank %d of this hub is open already",
                       session->options.rank);
    }
    for (member *at = hub->members; at != NULL; at = at->next) {
        call_session(at->session); /* who waits for this rank can connect now */
    }
    new->session = session;
    new->next = hub->members;
    hub->members = new;
    hub->users++;
    session->hub = hub;
    pthread_mutex_unlock(&hub->lock);
    return TB_OK;
}

static int32_t memory_open(tb_session *session, tb_error *err) {
    uint64_t handle = session->options.hub;
    struct tb_hub *hub = tb_handle_get(TB_HANDLE_HUB, handle, err);
    if (hub == NULL) {
        return TB_ECLOSED;
    }
    int32_t code = join_hub(hub, session, err);
    tb_handle_put(handle);
    return code;
}

static void memory_close(tb_session *session) {
    struct tb_hub *hub = session->hub;
    pthread_mutex_lock(&hub->lock);
    for (member **at = &hub->members; *at != NULL; at = &(*at)->next) {
        if ((*at)->session == session) {
            member *gone = *at;
            *at = gone->next;
            free(gone);
            break;
        }
    }
    for (offer **at = &hub->offers; *at != NULL;) {
        offer *made = *at;
        if (made->to == session) {
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
static void memory_free(tb_session *session) {
    if (session->hub != NULL) {
        let_hub_go(session->hub);
    }
}

/* The lower rank connects. */
static void memory_connect(tb_session *session, tb_peer *peer) {
    if (session->options.rank < peer->rank) {
        session->accept_pending = true;
        tb_thread_wake(&session->threads[0]);
    }
}

/* A connection with that rank over this link, which its thread opens. The hub's lock is held. */
static void make_conn(tb_session *session, tb_link *link, int32_t rank) {
    pthread_mutex_lock(&session->lock);
    tb_conn *conn = session->closing ? NULL : tb_conn_create(session, link, TB_CONN_CONNECTING);
    if (conn != NULL) {
        conn->rank = rank;
        conn->readable = true;
        conn->writable = true;
        tb_conn_kick(conn);
    }
    pthread_mutex_unlock(&session->lock);
    if (conn == NULL) {
        link->kind->close(link);
    }
}

static bool same_job(const tb_session_options *a, const tb_session_options *b) {
    return a->generation == b->generation && a->world == b->world
           && memcmp(a->name_space, b->name_space, sizeof a->name_space) == 0;
}

static void offer_link(struct tb_hub *hub, tb_session *session, tb_session *other) {
    tb_link ends[2];
    offer *made = malloc(sizeof *made);
    if (made == NULL || !tb_pipe_create(ends)) {
        free(made); /* the prepare that wants it ends at its deadline */
        return;
    }
    *made = (offer){hub->offers, other, session->options.rank, ends[1]};
    hub->offers = made;
    make_conn(session, &ends[0], other->options.rank);
    call_session(other);
}

/* The next rank from `from` on that this session is to connect with; marked as being connected. */
static int32_t next_wanted(tb_session *session, int32_t from) {
    int32_t rank = from > session->options.rank ? from : session->options.rank + 1;
    pthread_mutex_lock(&session->lock);
    for (; rank < session->options.world; rank++) {
        tb_peer *peer = session->peers[rank];
        if (peer != NULL && peer->exchanges != NULL && !peer->up && !peer->connecting) {
            break;
        }
    }
    pthread_mutex_unlock(&session->lock);
    return rank;
}

static void connect_wanted(struct tb_hub *hub, tb_session *session) {
    for (int32_t rank = next_wanted(session, 0); rank < session->options.world;
         rank = next_wanted(session, rank + 1)) {
        member *other = find_rank(hub, rank);
        if (other == NULL) {
            continue; /* it will call when it is there */
        }
        bool same = same_job(&session->options, &other->session->options);
        pthread_mutex_lock(&session->lock);
        if (same) {
            session->peers[rank]->connecting = true;
        } else {
            char message[96];
            snprintf(message, sizeof message, "rank %d is of another namespace, generation or world", rank);
            tb_peer_unreachable(session->peers[rank], TB_EAUTH, 0, message);
        }
        pthread_mutex_unlock(&session->lock);
        if (same) {
            offer_link(hub, session, other->session);
        }
    }
}

static void memory_accept(tb_session *session) {
    struct tb_hub *hub = session->hub;
    pthread_mutex_lock(&hub->lock);
    for (offer **at = &hub->offers; *at != NULL;) {
        offer *made = *at;
        if (made->to == session) {
            *at = made->next;
            make_conn(session, &made->link, made->from);
            free(made);
        } else {
            at = &made->next;
        }
    }
    connect_wanted(hub, session);
    pthread_mutex_unlock(&hub->lock);
}

/* In its own thread: so the pipe can tell it of bytes from the first one on, and nobody ends it meanwhile. */
static void memory_establish(tb_conn *conn) {
    tb_session *session = conn->session;
    tb_pipe_attach(&conn->link, conn);
    pthread_mutex_lock(&session->lock);
    tb_peer *peer = session->closing ? NULL : tb_session_peer(session, conn->rank);
    if (peer != NULL && peer->up) {
        tb_peer_lost(peer, TB_EPEER_LOST, 0, "it came back as another one", true);
    }
    if (peer != NULL) {
        peer->connections = 1;
        tb_conn_open(conn, peer, 0);
    } else {
        conn->doomed = true;
    }
    pthread_mutex_unlock(&session->lock);
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
