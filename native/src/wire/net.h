/*
 * What the connections of a session have in common: its lock, its loops, its peers, and what it tells the caller.
 *
 * A session has one lock. It guards everything here but what a comment gives to a loop, and is held for decisions only,
 * never while bytes move or a system call runs. Each connection belongs to one loop, whose thread alone reads, writes
 * and ends it; others ask by tb_conn_kick.
 *
 * wire/ moves frames and knows nothing of what they mean. It calls up through one table, tb_peer_handler.
 */
#ifndef TB_NET_H
#define TB_NET_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "flow/stream.h"
#include "wire/link.h"
#include "wire/wire.h"

enum { TB_CONNECTIONS = 16 }; /* the most with one peer */
enum { TB_LOOPS = 16 };       /* the most of a session */
enum { TB_BOUNCE_BYTES = 256 * 1024, TB_IOVECS = 1024 }; /* what each loop has for its own use */

typedef struct tb_net tb_net;
typedef struct tb_loop tb_loop;
typedef struct tb_peer tb_peer;
typedef struct tb_conn tb_conn;
typedef struct tb_frame tb_frame;
typedef struct tb_arrival tb_arrival;

/* ---- peers --------------------------------------------------------------------------------------------- */

/* Another rank: whether it is there. */
struct tb_peer {
    tb_net *net;
    int32_t rank;
    bool up; /* every connection is open */
    bool connecting;
    bool left;            /* it has closed the last connection itself, once it had come to rest */
    uint32_t connections; /* how many there are to be */
    uint32_t open;
    uint64_t incarnation;
    tb_conn *conns[TB_CONNECTIONS]; /* control goes over the first */
    atomic_bool heard;              /* bytes came since the last tick */
    uint32_t silent_ticks;
    /* tcp: where it listens; tries to connect. */
    bool has_address;
    struct tb_address *address;
    uint64_t retry_at; /* 0: not waiting */
    uint64_t first_try;
    uint32_t tries;
    /* The handler's own; wire/ does not look at them. */
    struct tb_exchange *exchanges; /* those of the transfers that deal with it */
    struct tb_early *early;
    uint32_t early_count;
    bool has_nonce;
    uint8_t nonce[16]; /* that it places in its book for us while it is connected */
};

/* What wire/ asks and tells those who know what frames mean. The lock is held in all of these. */
typedef struct tb_peer_handler {
    /* True if somebody waits for a connection with the peer. */
    bool (*wanted)(const tb_peer *peer);
    void (*up)(tb_peer *peer);
    /* What the peer said before anybody wanted it is of no use any more: its connection, or the session, ends. */
    void (*forget)(tb_peer *peer);
    /* The peer was up, and is no more: everything with it fails. */
    void (*lost)(tb_peer *peer, int32_t code, int os_errno, const char *message);
    /* The peer could not be connected. */
    void (*unreachable)(tb_peer *peer, int32_t code, int os_errno, const char *message);
    /* A control frame; body: header->body_bytes of it. A code if the peer broke the protocol. */
    int32_t (*frame)(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err);
    /* Fills *frame with the next bucket that may be sent to the peer, and counts it; false if there is none. */
    bool (*claim)(tb_peer *peer, tb_frame *frame);
    /* The last byte of the bucket is with the link. */
    void (*sent)(tb_stream *stream, uint32_t bucket);
    /*
     * A bucket begins to come: says where it goes, and counts it, or leaves arrival->stream NULL if its bytes are to be
     * dropped. A code if the peer broke the protocol.
     */
    int32_t (*arrive)(tb_peer *peer, tb_arrival *arrival, tb_error *err);
    /* All of it has come. rank: the sender, or -1 if that is gone meanwhile. */
    void (*arrived)(tb_stream *stream, const tb_arrival *arrival, const tb_wire_trailer *trailer, int32_t rank);
    /* A bucket that was counted is not moved any further: its round failed, or its connection ended. */
    void (*let_go)(tb_stream *stream);
} tb_peer_handler;

/* ---- loops --------------------------------------------------------------------------------------------- */

/* What one thread serves: connections, and whatever its owner adds (round/thread.h). */
struct tb_loop {
    tb_net *net;
    uint32_t index;
    int epoll_fd;
    int wake_fd;
    bool sleeping;
    bool sweep; /* some round failed: let go of it */
    tb_conn *conns;
    tb_conn *runnable, **runnable_end;
    /* Owned by the thread; no lock is needed. */
    uint8_t *bounce;
    struct iovec *iov;
    uint8_t sink[16];
};

/* ---- the session's part -------------------------------------------------------------------------------- */

typedef struct tb_event_node {
    struct tb_event_node *next;
    tb_event event;
} tb_event_node;

struct tb_net {
    pthread_mutex_t lock;
    tb_session_options options;
    uint64_t incarnation;
    const tb_peer_handler *handler;
    int event_write, event_read; /* the caller has a descriptor of its own for the read end */
    tb_event_node *events, **events_end;
    uint32_t fault_count; /* how many of the events are faults */
    /* Faults of this second, those beyond what is told, and the last of them. */
    uint64_t fault_second;
    uint32_t faults_told, faults_left_out;
    tb_error fault_left_out;
    uint32_t question_count; /* how many of the events strangers have caused */
    tb_loop *loops[TB_LOOPS];
    uint32_t loop_count;
    uint32_t next_loop;
    bool accept_pending; /* someone asks for a connection, or may be there now */
    bool closing;
    /* Reads of peers' memory for rounds that failed: no connection is closed before they are over. */
    uint32_t stale_pulls;
    uint64_t next_timer;
    uint64_t next_tick;
    tb_peer **peers; /* by rank; NULL if there was nothing to do with it */
    uint64_t connection_count;
    uint32_t half_open;
    /* tcp */
    int listen_fd, spare_fd;
    uint64_t accept_at; /* 0, or: the listener is not watched until then */
    uint32_t port;
    /* memory */
    struct tb_hub *hub;
    const struct tb_backend *backend;
};

/* What a back end does; all are called with the session's lock held but for open, close, accept and establish. */
typedef struct tb_backend {
    bool pings; /* peers can fall silent */
    int32_t (*open)(tb_net *net, tb_error *err);
    /* No new connections from here on. */
    void (*close)(tb_net *net);
    /* Gives back what its threads used, once they have ended; also if open failed. */
    void (*free)(tb_net *net);
    /* Connects to a peer if that is this rank's part and it can be done now. */
    void (*connect)(tb_net *net, tb_peer *peer);
    /* Takes what asks for a connection: in the first thread. */
    void (*accept)(tb_net *net);
    /* A connection that is CONNECTING or in its HANDSHAKE: in its thread. */
    void (*establish)(tb_conn *conn);
    /* One ended before its peer was up. */
    void (*ended)(tb_conn *conn);
} tb_backend;

extern const tb_backend tb_backend_memory;
extern const tb_backend tb_backend_tcp;

/* ---- net.c --------------------------------------------------------------------------------------------- */

/* The lock, the pipe of events and the table of peers; *event_fd is the caller's end. tb_net_free also if it fails. */
int32_t tb_net_init(tb_net *net, const tb_session_options *options, const tb_backend *backend,
                    const tb_peer_handler *handler, int32_t *event_fd, tb_error *err);
/* Its loops were closed. */
void tb_net_free(tb_net *net);
/* The lock is held from here on. */
/* False if the event is lost: there is no memory, or the session ends. */
bool tb_net_event(tb_net *net, const tb_event *event);
/* The same with memory that was put by before; it is taken from *reserved. */
void tb_net_event_reserved(tb_net *net, const tb_event *event, tb_event_node **reserved);
/* Something that belongs to no transfer was refused. A few are told a second, the others are summed up in one. */
void tb_net_fault(tb_net *net, const tb_error *error);
/* The oldest event; kind 0 if there is none. */
void tb_net_next_event(tb_net *net, tb_event *event);
/* The peer of that rank, made if it is missing; NULL: no memory. */
tb_peer *tb_net_peer(tb_net *net, int32_t rank);
/* The first loop wakes then, at the latest. */
void tb_net_timer(tb_net *net, uint64_t at);
/* Whatever of connections and peers is due; *next becomes the next time to look. */
void tb_net_run_timers(tb_net *net, uint64_t now, uint64_t *next);
/* *next becomes the earlier of the two; 0 is no time. */
void tb_sooner(uint64_t *next, uint64_t at);

#endif
