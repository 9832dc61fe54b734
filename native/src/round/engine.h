/*
 * The engine behind tb_session and tb_transfer: its objects, and who may touch what.
 *
 * A session has one lock. It guards everything below but what a comment gives to a thread, and is held for
 * decisions only, never while bytes move or a system call runs. Each connection belongs to one progress
 * thread, which alone reads, writes and ends it; others ask by tb_conn_kick. What moves bytes of a round
 * outside of the lock has counted itself in transfer->active before, and looks at transfer->stop before it touches
 * memory: a round that failed is quiet, and says so, once active is 0.
 */
#ifndef TB_ENGINE_H
#define TB_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/heap.h"
#include "flow/flow.h"
#include "wire/link.h"
#include "wire/wire.h"

enum { TB_BOUNCE_BYTES = 256 * 1024 };
/* of the buffer for headers and small buckets; takes every control frame */
enum { TB_READ_BYTES = 64 * 1024 };
enum { TB_IOVECS = 1024 };
/*
 * Of payload in a system call: what one thread has just written, the next one reads while it is in the cache,
 * and a core is not kept from the peer for longer (measured: docs/adr/0001-streaming.md).
 */
enum { TB_CALL_BYTES = 1024 * 1024 };
enum { TB_BATCH = 64 }; /* buckets under way on a connection, of which all but the last are small */
enum { TB_EARLY = 1024 }; /* prepares of a peer that are kept for a transfer of ours that is still to come */
enum { TB_CONNECTIONS = 16 };

typedef struct tb_session tb_session;
typedef struct tb_thread tb_thread;
typedef struct tb_peer tb_peer;
typedef struct tb_conn tb_conn;
typedef struct tb_transfer tb_transfer;
typedef struct tb_exchange tb_exchange;
typedef struct tb_import tb_import;
typedef struct tb_pull tb_pull;
typedef struct tb_job tb_job;
typedef struct tb_region tb_region;
typedef struct tb_event_node tb_event_node;
typedef struct tb_device tb_device;
struct tb_cuda_moves;

/* ---- connections --------------------------------------------------------------------------------------- */

/* A bucket on its way out. void: its round failed, and it is filled up with zeros. */
typedef struct tb_frame {
    tb_transfer *transfer; /* NULL where it is void */
    uint32_t bucket;
    bool checksum;
    uint64_t payload;
    uint64_t sent; /* of header, payload and trailer */
    bool good; /* of its trailer something went out, before it was void */
    uint64_t offered; /* bytes in the system call under way */
    uint64_t packed;
    uint32_t crc, next_crc;
    tb_wire_header header;
    tb_flow flow, next;
} tb_frame;

enum tb_read_state { TB_READ_HEADER, TB_READ_CONTROL, TB_READ_PAYLOAD, TB_READ_TRAILER };

/* The bucket on its way in. transfer is NULL where its bytes are dropped. */
typedef struct tb_arrival {
    enum tb_read_state state;
    tb_wire_header header;
    tb_transfer *transfer;
    uint32_t bucket;
    uint32_t slot; /* TB_NONE where it goes to its place at once */
    bool checksum;
    uint64_t left; /* payload bytes to come */
    uint32_t crc;
    tb_flow flow;
} tb_arrival;

enum tb_conn_state {
    TB_CONN_CONNECTING, /* tcp: waits for connect */
    TB_CONN_HANDSHAKE,
    TB_CONN_OPEN,
    TB_CONN_CLOSING, /* what is to be said goes out, what comes in is dropped */
};

typedef struct tb_handshake {
    uint64_t number; /* of the connection, for the caller */
    bool accepted;   /* this side accepted the connection, the other one connected */
    bool said_hello, got_hello, proof_sent, got_proof, proof_good, welcomed;
    bool refused;
    tb_hello ours, theirs;
    uint8_t proof[TB_PROOF_BYTES];
} tb_handshake;

struct tb_conn {
    tb_session *session;
    tb_thread *thread;
    tb_conn *next, *before; /* of the thread */
    tb_conn *next_runnable;
    tb_peer *peer; /* NULL until it is known, and after it was lost */
    uint32_t index; /* among the peer's; control goes over the first */
    _Atomic enum tb_conn_state state;
    bool runnable;
    uint8_t signals; /* that a link gave from elsewhere */
    atomic_bool doomed; /* the thread ends it as soon as it can */
    int32_t rank; /* that it is to be connected with, until it is open; or -1 */
    uint64_t deadline; /* of the handshake, or of an orderly end; 0: none */
    tb_handshake *handshake;

    /* Of the thread alone. */
    tb_link link;
    bool readable, writable, hung_up;
    uint8_t *read_buffer;
    uint32_t read_begin, read_end;
    uint32_t reach; /* iovecs that the last read filled, and some more */
    tb_arrival arrival;
    tb_frame *frames;
    uint32_t first_frame, frame_count; /* of a ring */
    bool read_progress;
    bool finished; /* nothing more will be written */
    bool ended;    /* the other side has closed it */
    int end_errno; /* why it could not be established */

    /* Control frames to be sent; filled by anyone, taken by the thread. */
    uint8_t *control;
    uint32_t control_bytes, control_room;
    uint8_t *sending; /* of the thread */
    uint32_t sending_at, sending_bytes, sending_room;
};

/* ---- peers --------------------------------------------------------------------------------------------- */

typedef struct tb_early {
    struct tb_early *next;
    tb_wire_prepare prepare;
    tb_wire_channel channels[2 * TB_STAGES];
    char key[TB_KEY_BYTES + 1];
} tb_early;

struct tb_peer {
    tb_session *session;
    int32_t rank;
    bool up;       /* every connection is open */
    bool connecting;
    uint32_t connections; /* how many there are to be */
    uint32_t open;
    uint64_t incarnation;
    tb_conn *conns[TB_CONNECTIONS];
    tb_exchange *exchanges; /* of the transfers that deal with it */
    bool left;      /* it ended the last connection itself, once it had come to rest */
    tb_early *early;
    uint32_t early_count;
    bool has_nonce;
    uint8_t nonce[16]; /* that it places in its book for us while it is connected */
    atomic_bool heard; /* bytes came since the last tick */
    uint32_t silent_ticks;
    uint32_t turn; /* where the search for a transfer to send of begins */
    /* tcp: where it listens; tries to connect. */
    bool has_address;
    struct tb_address *address;
    uint64_t retry_at; /* 0: not waiting */
    uint64_t first_try;
    uint32_t tries;
};

/* ---- transfers -------------------------------------------------------------------------------------------- */

/* What a transfer has to do with one peer. */
struct tb_exchange {
    tb_transfer *transfer;
    tb_peer *peer;
    tb_exchange *next; /* of the peer */
    uint64_t remote; /* the peer's number of the transfer; 0 until its PREPARE came */
    bool told;       /* our PREPARE went out */
    bool matched;    /* the peer has paired its transfer with this one, too */
    bool gone;       /* the peer, or its transfer, went away after all */
    bool pooled;     /* the peer owns reduced pieces */
    uint32_t unfinished; /* channels of the round under way */
    uint32_t send[TB_STAGES], receive[TB_STAGES]; /* channels, or TB_NONE */
    tb_heap ready; /* buckets, in the order of their numbers: (wave, stage, channel, sequence) */
    /* Carriers (carrier.h). */
    uint32_t carrier;    /* tb_carrier_number */
    tb_wire_identity identity;   /* of the peer */
    bool said_match;     /* our MATCH went out */
    tb_import *import;   /* what the peer exports */
    uint32_t exposed;    /* send: buckets that the peer may read now */
    bool awaits_quiet;   /* send: a round failed, and the peer may still read */
    uint32_t pulling;    /* receive: buckets that are being read */
    uint64_t owes_quiet; /* receive: the round in which the peer waits for that; 0: none */
    /* NCCL: what the two exchange goes by it; the peer is of the communicator; it begins rounds with this rank. */
    bool by_nccl, joins, together;
    uint64_t joined;     /* what its PREPARE said: as of the transfer */
    uint64_t begun;      /* the round that the peer has told its leader of, and on which communicator */
    uint32_t begun_epoch;
    uint64_t gave_up;    /* the last round that the peer said ABORT of */
};

typedef struct tb_channel_state {
    uint64_t granted_round; /* send: of the latest grant */
    uint32_t granted;       /* buckets that may be sent, or that we allowed */
    uint32_t in_flight;     /* stage 0: granted and not yet folded */
    uint32_t done; /* buckets: receive: consumed; send: taken by a connection */
    bool finished;
    bool announce; /* receive: granted has grown, the peer does not know yet */
    tb_exchange *exchange;
} tb_channel_state;

enum tb_bucket_state {
    TB_BUCKET_IDLE = 0,
    TB_BUCKET_ALLOWED, /* to come, or (own contribution) to be folded in its turn */
    TB_BUCKET_QUEUED,
    TB_BUCKET_MOVING,
    TB_BUCKET_READY,  /* a contribution that can be pulled, but has no place yet */
    TB_BUCKET_STAGED, /* it is here, or can be pulled, and waits for its turn */
    TB_BUCKET_DONE,
};

enum tb_transfer_state {
    TB_TRANSFER_PREPARING,
    TB_TRANSFER_READY,
    TB_TRANSFER_RUNNING,
    TB_TRANSFER_ENDING, /* its prepare failed, and a thread is still at it */
    TB_TRANSFER_DEAD,
};

/*
 * Staging memory in use. Streams (not slots, not the pool) of several threads share what was announced for
 * them.
 */
typedef struct tb_staging {
    pthread_mutex_t lock;
    pthread_cond_t freed;
    uint64_t now, high;
    uint64_t streams[2], limit[2]; /* 0 sending, 1 receiving */
} tb_staging;

/* How peers reach memory of a GPU: the handle of the allocation that it lies in, and where. */
typedef struct tb_device_memory {
    bool on_device;
    bool has_handle;
    uint8_t handle[64];
    uint64_t offset;
} tb_device_memory;

typedef struct tb_pool {
    uint8_t *memory;
    uint64_t ring;       /* bytes for pieces */
    uint64_t bytes;      /* mapped, with what is shared of piece_at behind the pieces, or 0 of that */
    uint64_t *shared_at; /* a copy of piece_at for those who pull; NULL: nobody */
    uint64_t *piece_at;  /* offset in memory */
    uint64_t *piece_end; /* on the endless line that the ring is wound from */
    uint32_t *order;     /* pieces by their place on that line */
    uint32_t *readers;   /* chunks that are still to read it; TB_NONE where it is free */
    uint32_t placed, freed; /* positions in order */
    uint64_t head, tail; /* on the line */
    /* On a GPU: where each piece lies, which is the same in every round. */
    uint64_t *fixed_at;
    tb_device_memory device;
} tb_pool;

struct tb_transfer {
    tb_session *session;
    uint64_t handle;
    tb_transfer *next;
    char *key;
    uint32_t flags;
    enum tb_transfer_state state;
    tb_program program;
    tb_binding *bindings;
    tb_device *device; /* that all of its tensors lie on; NULL: they are memory of the host */
    uint32_t *regions; /* that the bindings lie in */
    bool holds_regions;
    tb_places places;
    const struct tb_carrier *mover; /* of what goes from this rank to itself; NULL: the session's threads */
    /* Where some of its buckets travel by NCCL (nccl_rounds.h), else NULL. */
    struct tb_nccl_steps *nccl_steps;
    struct tb_nccl_run *run;
    /* Who begins its rounds together, and who leads them: NULL and -1 where nobody waits for others. */
    tb_member *members;
    uint32_t member_count;
    int32_t leader;
    uint64_t joined; /* a fingerprint of those who join; 0: this rank does not */
    tb_exchange *exchanges;
    uint32_t exchange_count;
    /* For the event that ends the prepare or round under way: it must not fail for want of memory. */
    tb_event_node *reserved;
    uint64_t deadline; /* of the prepare or round under way */

    /* The round under way or the last one. */
    uint64_t round;
    uint64_t started;
    atomic_bool stop; /* its memory may not be touched any more */
    bool failing;
    tb_error error;
    uint32_t active;
    uint32_t pulling;        /* of active: buckets that are pulled */
    uint64_t quiet_deadline; /* of targets of a failed round; 0: none is waited for */
    bool quarantined;
    bool refused; /* its prepare failed for a reason that another attempt would meet as well */
    bool moved;   /* a peer has begun it anew, since something was not where it was said to be */
    /* Buckets for which READY is to be said: of one side, stage, and in a row. */
    struct {
        tb_exchange *exchange;
        uint8_t stage;
        uint32_t first, count;
    } offer;
    uint64_t aborted_round; /* the latest one that a peer spoiled, and why */
    tb_error aborted;
    uint32_t receives_left, sends_left, locals_left;
    /* Stages 1 and 2: the next turn, and what was granted in turns and has not come. */
    struct {
        uint32_t next, buckets;
        uint64_t bytes;
    } turns[TB_STAGES];
    uint32_t next_fold; /* position in the fold order up to which contributions are allowed */
    uint32_t folds_in_flight;
    tb_channel_state *channels;
    uint8_t *buckets; /* tb_bucket_state */
    uint32_t *waits;
    tb_heap jobs;     /* buckets that a thread moves here: local ones, and folds of what was staged */
    uint8_t *slots;
    uint32_t *free_slots;
    uint32_t free_slot_count;
    uint32_t *slot_of; /* by bucket */
    tb_pool pool;
    struct tb_cuda_moves *local_moves; /* on a GPU: of buckets from this rank to itself */
    tb_staging staging;
    atomic_uint_fast64_t bytes_sent, bytes_received, bytes_copied;
};

/* ---- threads and sessions ------------------------------------------------------------------------------ */

struct tb_job {
    tb_transfer *transfer; /* NULL: none */
    uint32_t bucket;
    uint64_t moved;
    tb_flow flow;
    tb_cursor source;
    tb_exchange *exchange;        /* whose memory it is pulled from, or NULL */
    uint64_t source_left; /* pulled: bytes of the chunk at the source that are to come */
    bool started;
    uint8_t *bounce; /* the thread's, for private memory of other processes */
    struct iovec *iov;
};

struct tb_thread {
    tb_session *session;
    uint32_t index;
    pthread_t id;
    int epoll_fd;
    int wake_fd;
    bool sleeping;
    bool sweep; /* some round failed: let go of it */
    tb_conn *conns;
    tb_conn *runnable, **runnable_end;
    /* Of the thread alone. */
    tb_job job;
    uint8_t *bounce;
    struct iovec *iov;
    uint8_t sink[16];
};

struct tb_region {
    uint64_t address, bytes;
    uint32_t memory; /* the bit of its kind: tb_memory_bits */
    tb_device_memory device;
    uint32_t uses;
    bool open;
    bool quarantined; /* a peer may still read it, for good */
};

struct tb_event_node {
    tb_event_node *next;
    tb_event event;
};

struct tb_session {
    pthread_mutex_t lock;
    tb_session_options options;
    uint64_t incarnation;
    int event_write, event_read; /* the caller has a descriptor of its own for the read end */
    tb_event_node *events, **events_end;
    uint32_t fault_count; /* of the events */
    tb_thread *threads;
    uint32_t thread_count, threads_running, threads_ended;
    pthread_cond_t thread_ended;
    bool accept_pending; /* someone asks for a connection, or may be there now */
    bool closing;
    bool farewell; /* it was said, or there is nothing to wait for before */
    bool stop;
    uint64_t stop_at;
    tb_wire_identity identity;
    struct tb_book *book; /* NULL: its peers never read in its memory */
    tb_session *next_own; /* of the sessions of this process */
    tb_device *device;    /* on which registered memory may lie; NULL: there is none */
    tb_import *imports;   /* that wait for a thread */
    uint32_t stale_pulls; /* of rounds that have failed: no connection is closed before they are over */
    bool quarantined;
    uint64_t next_timer;
    uint64_t next_tick;
    tb_peer **peers; /* by rank; NULL where there was nothing to do with it */
    tb_transfer *transfers;
    uint64_t transfer_count;
    tb_region *regions;
    uint32_t region_count;
    uint32_t next_thread;
    uint64_t connection_count;
    uint32_t half_open;
    /* tcp */
    int listen_fd, spare_fd;
    uint64_t accept_at; /* 0, or: the listener is not watched until then */
    uint32_t port;
    struct tb_nccl *nccl; /* NULL: it has no device of its own */
    /* memory */
    struct tb_hub *hub;
    const struct tb_backend *backend;
};

/* What a back end does; all are called with the session's lock held but for open and close. */
typedef struct tb_backend {
    bool pings; /* peers can fall silent */
    int32_t (*open)(tb_session *session, tb_error *err);
    /* No new connections from here on. */
    void (*close)(tb_session *session);
    /* Gives back what its threads used, once they have ended; also where open failed. */
    void (*free)(tb_session *session);
    /* Connects to a peer if that is this side's part and it can be done now. */
    void (*connect)(tb_session *session, tb_peer *peer);
    /* Takes what asks for a connection: in the first thread, without the lock. */
    void (*accept)(tb_session *session);
    /* A connection that is CONNECTING or in its HANDSHAKE: in its thread, without the lock. */
    void (*establish)(tb_conn *conn);
    /* One ended before its peer was up. */
    void (*ended)(tb_conn *conn);
} tb_backend;

extern const tb_backend tb_backend_memory;
extern const tb_backend tb_backend_tcp;

/* session.c: the lock is held. */
/* False where it is lost: there is no memory, or the session ends. */
bool tb_session_event(tb_session *session, const tb_event *event);
void tb_session_event_reserved(tb_session *session, const tb_event *event, tb_event_node **reserved);
void tb_session_fault(tb_session *session, const tb_error *error);
/* All pulls of failed rounds are over: what waited for that goes on. */
void tb_session_rests(tb_session *session);
tb_peer *tb_session_peer(tb_session *session, int32_t rank); /* made where it is missing; NULL: no memory */
void tb_session_timer(tb_session *session, uint64_t at);

/* thread.c */
int32_t tb_threads_start(tb_session *session, tb_error *err);
bool tb_threads_join(tb_session *session, uint64_t until);
void tb_threads_free(tb_session *session);
void tb_thread_wake(tb_thread *thread);         /* the lock is held */
void tb_threads_sweep(tb_session *session);     /* the lock is held */
void tb_threads_offer_job(tb_session *session); /* the lock is held */

#endif
