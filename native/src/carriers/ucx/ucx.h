/*
 * UCX in a session: two workers of one context, whose memory, end points and requests are all used by one thread, which
 * others hand tasks to. One worker reads, the other is read from: UCX takes two end points that two workers make to
 * each other for the two ends of one connection, and what ends the one ends the other. What stands here is that
 * thread's, unless a comment says otherwise.
 */
#ifndef TB_UCX_H
#define TB_UCX_H

#include <pthread.h>

#include "carriers/registry.h"
#include "carriers/ucx/ucx_api.h"
#include "device/device.h"
#include "flow/flow_parts.h"

enum tb_ucx_workers { TB_UCX_READS, TB_UCX_SERVES, TB_UCX_WORKERS };

enum {
    TB_UCX_SLOT_BYTES = 512 << 10, /* what is cast, folded or gathered passes through slots */
    TB_UCX_SLOTS = 16,
    TB_UCX_PROBE_BYTES = 64,
    TB_UCX_RUNS = 1024,
    /* What is under way at once, from one source and from all: none of them keeps the others waiting. */
    TB_UCX_MOST_GETS = 128,
    TB_UCX_MOST_GETS_OF_ALL = 512,
    TB_UCX_MOST_BYTES = 32 << 20,
    TB_UCX_MOST_BYTES_OF_ALL = 64 << 20,
    TB_UCX_GET_BYTES = 4 << 20, /* the most that one get asks for */
    TB_UCX_MOST_BOUNCES = 8,
};

typedef struct tb_ucx tb_ucx;
typedef struct tb_ucx_source tb_ucx_source;
typedef struct tb_ucx_move tb_ucx_move;

/* Something that the thread is to do; the memory is the caller's, which may free it in `run`. */
typedef struct tb_ucx_task {
    struct tb_ucx_task *next;
    void (*run)(tb_ucx *ucx, struct tb_ucx_task *task);
} tb_ucx_task;

/*
 * Memory of this rank that was registered. Does not change until it is unmapped; the session's lock need not be held.
 */
typedef struct tb_ucx_memory {
    uint64_t address, bytes;
    int type;
    tb_ucp_memory handle;
    void *key; /* packed, as peers get it */
    size_t key_bytes;
    int polls; /* how often the worker progresses before it is unmapped */
} tb_ucx_memory;

/* The place in this rank's memory that something comes to, what it is registered as (NULL: nothing), and its type. */
typedef struct tb_ucx_place {
    void *at;
    tb_ucp_memory memory;
    int type;
} tb_ucx_place;

/*
 * GPU memory that buckets of one transfer come into whose elements do not come to where they belong: kernels bring them
 * there. Each bucket has its place in it for good, since the kernels' tables name it, and waits for it while another
 * bucket is there.
 */
typedef struct tb_ucx_bounce {
    struct tb_ucx_bounce *next; /* behind the lock, */
    uint64_t transfer;          /* its handle, */
    uint32_t uses;              /* by sources, */
    uint32_t next_slot;         /* to be given to a bucket */
    uint64_t address, slot_bytes;
    uint32_t slots;
    tb_ucp_memory handle;
    bool taken[TB_UCX_MOST_BOUNCES]; /* by a bucket that comes; the thread's */
} tb_ucx_bounce;

/* How a chunk comes into this rank's GPU: to where it belongs, in a row, or with the gaps that it has at its source. */
enum tb_ucx_way { TB_UCX_DIRECT, TB_UCX_ROW, TB_UCX_SPAN };
typedef struct tb_ucx_chunk {
    enum tb_ucx_way way;
    uint64_t at;    /* in the slot, unless it is direct */
    uint64_t bytes; /* that are read */
    int64_t first;  /* span: where its first byte lies, from where the source says that its tensor does */
} tb_ucx_chunk;

/* What of one source comes to this rank's GPU. Does not change. */
typedef struct tb_ucx_unpack {
    tb_ucx_bounce *bounce; /* NULL: all of it is direct */
    tb_cuda_moves moves;   /* a group for each bucket, by stage and sequence */
    uint32_t first_group[TB_STAGES], group_count;
    uint32_t *slot_of;    /* by group; TB_NONE: all of it is direct */
    tb_ucx_chunk *chunks; /* by end */
    uint32_t first_end[TB_STAGES], first_chunk[TB_STAGES];
} tb_ucx_unpack;

typedef struct tb_ucx_region {
    uint64_t base; /* its address at the source */
    const uint8_t *packed;
    tb_ucp_key key; /* for the end point; NULL: it has not been needed */
} tb_ucx_region;

/* Another rank's memory for one transfer, and the way there. */
struct tb_ucx_source {
    tb_ucx_task task;
    tb_ucx *ucx;
    int32_t rank;
    tb_ucp_ep ep;         /* NULL: there is none now */
    bool failed, closing; /* it must be closed, it is being closed */
    bool leaving;         /* nobody wants it any more: it is freed once all is over */
    /* What first went wrong with the end point: what is canceled for it says so. */
    tb_ucs_status why;
    int32_t code; /* TB_OK: nothing but what UCX says */
    tb_error error;
    uint32_t gets;  /* how many are under way, */
    uint64_t bytes; /* and what they ask for */
    struct { /* whether a read of its first byte has come back; behind ucx->lock */
        bool over;
        int32_t code;
        tb_error error;
    } probe;
    uint32_t region_count;
    uint32_t probed; /* the region whose first byte is asked for; TB_NONE: all are empty */
    const uint8_t *address;
    uint8_t *said;                 /* the source's words, with room behind each (ucx_source.c) */
    const tb_ucx_memory **buffers; /* for each buffer of the program, the memory of this rank that it lies in */
    tb_ucx_unpack *unpack;         /* NULL: the transfer's tensors lie in memory of the host */
    tb_ucx_region regions[];
};

/* What waits for gets. */
typedef struct tb_ucx_wait {
    uint32_t gets;
    tb_ucx_move *move;
} tb_ucx_wait;

/* Some of a bucket: gets that were asked for together, and what is to be done once all have come. */
typedef struct tb_ucx_step {
    tb_ucx_wait wait; /* first */
    struct tb_ucx_step *next;
    uint8_t *slot;  /* NULL: it comes to where it belongs */
    tb_cursor from; /* over the slot */
    uint64_t elements, bytes;
} tb_ucx_step;

/* A bucket that is read. Front: what is asked for next; flow: what is put next. */
struct tb_ucx_move {
    tb_ucx_task task; /* first */
    tb_ucx_move *next;
    tb_pull *pull;
    tb_ucx_source *source;
    tb_flow flow;
    uint32_t chunk, chunk_end;
    bool started, direct;
    tb_cursor from, to;
    uint64_t elements; /* elements of the chunk that are still to be asked for; on a GPU: bytes */
    const tb_ucx_region *region;
    tb_ucx_place here; /* the chunk's destination */
    uint32_t group, slot; /* on a GPU; TB_NONE: it has no slot now */
    tb_ucx_step *first, **last;
    uint32_t gets;    /* under way */
    uint64_t *places; /* places of reduced pieces, by chunk; NULL: not asked for */
    tb_ucx_wait places_wait;
    tb_ucs_status status; /* what the first get that failed ended with */
    int32_t code;
    tb_error error;
    uint64_t stopped_at; /* when that was noticed; 0: it was not */
};

struct tb_ucx {
    /* These do not change. */
    const tb_ucx_api *api;
    int32_t rank;
    tb_ucp_context context;
    tb_ucp_worker workers[TB_UCX_WORKERS];
    uint32_t speaks;
    tb_device *device;      /* whose memory UCX reaches; NULL: that of none */
    uint64_t device_probe;  /* its memory that a probe reads into */
    tb_ucp_memory device_probe_memory;
    void *address; /* the address of the worker that is read from, as peers get it */
    size_t address_bytes;
    int wake_fd, progress_fds[TB_UCX_WORKERS];
    pthread_t thread;
    tb_ucx *next; /* the next in the list of all sessions */

    /* Behind the lock. */
    pthread_mutex_t lock;
    pthread_cond_t done; /* a call, a probe, or the thread */
    tb_ucx_task *tasks, **tasks_end;
    uint32_t abandoned; /* calls that nobody waits for any more */
    tb_ucx_bounce *bounces;
    bool stop, ended;

    bool goes_on[TB_UCX_WORKERS]; /* it had something to do the last time */
    tb_ucx_move *moves, **moves_end;
    uint32_t gets; /* under way */
    uint64_t bytes;
    uint32_t closing; /* end points */
    uint8_t *slots;
    tb_ucp_memory slots_memory;
    uint8_t *free_slots[TB_UCX_SLOTS];
    uint32_t free_slot_count;
    struct iovec runs[TB_UCX_RUNS];
};

static inline tb_ucx *tb_ucx_of(const tb_session *session) {
    return session->carrier_state[TB_CARRIER_UCX];
}

/* ---- ucx_thread.c: from any thread ---------------------------------------------------------------------- */

/* Starts the thread of workers that were made. */
int32_t tb_ucx_start(tb_ucx *ucx, tb_error *err);
/*
 * Ends it, once all tasks are done and all end points are closed. False if it cannot be known that UCX touches nothing
 * any more, and all has to stay as it is: end points that were not closed in time, whose thread has ended; or a thread
 * that does not come back from UCX, or rests because the process ends, which is left to itself.
 */
bool tb_ucx_stop(tb_ucx *ucx);
void tb_ucx_post(tb_ucx *ucx, tb_ucx_task *task);
/*
 * Has the thread do something, and waits for it; a function that returns TB_UCX_AGAIN is called again after what else
 * there is to do. TB_EUNSUPPORTED if UCX does not come back, or the process ends: then it may still be done later, so
 * that the argument is the thread's; if it was not begun, err is NULL then.
 */
enum { TB_UCX_AGAIN = 1 };
int32_t tb_ucx_call(tb_ucx *ucx, int32_t (*function)(tb_ucx *ucx, void *argument, tb_error *err), void *argument,
                    tb_error *err);

/* ---- ucx_source.c --------------------------------------------------------------------------------------- */

int32_t tb_ucx_open(tb_import *import, const tb_exchange *exchange, tb_error *err);
void tb_ucx_close(tb_import *import);
/*
 * In the thread: whether the end point is there, which is made anew after a failure; false: not now, or *err says why
 * not.
 */
enum tb_ucx_reached { TB_UCX_REACHED, TB_UCX_NOT_YET, TB_UCX_UNREACHED };
enum tb_ucx_reached tb_ucx_reach(tb_ucx_source *source, tb_error *err);
/* In the thread: ends all gets under way with TB_UCS_CANCELED; nothing of them lands once source->gets is 0. */
void tb_ucx_cut(tb_ucx_source *source);
/* In the thread: one get. False if it could not be asked for, or is over: then *status says how. */
bool tb_ucx_get(tb_ucx_source *source, const tb_ucx_region *region, uint64_t at, tb_ucx_place to, uint64_t bytes,
                void (*came)(void *request, tb_ucs_status status, void *user_data),
                void *user_data, tb_ucs_status *status);
/* In the thread: it is over. */
void tb_ucx_got(tb_ucx_source *source);

/* ---- ucx_session.c: in the thread, or before there is one -------------------------------------------------- */

tb_ucs_status tb_ucx_map(tb_ucx *ucx, uint64_t address, uint64_t bytes, int type, tb_ucp_memory *handle);

/* ---- ucx_unpack.c ---------------------------------------------------------------------------------------- */

/* Decides how each chunk of a source whose words were checked comes to the GPU. Not in the thread. */
int32_t tb_ucx_unpack_make(tb_ucx_source *source, const tb_import *import, const tb_exchange *exchange, tb_error *err);
/* In the thread, once nothing is under way. */
void tb_ucx_unpack_free(tb_ucx_source *source);

static inline const tb_ucx_chunk *tb_ucx_chunk_of(const tb_ucx_unpack *unpack, uint8_t stage, uint32_t chunk) {
    return &unpack->chunks[unpack->first_end[stage] + (chunk - unpack->first_chunk[stage])];
}

/* ---- ucx_move.c ----------------------------------------------------------------------------------------- */

void tb_ucx_submit(tb_pull *pull);
/*
 * In the thread: asks for what can be asked for, puts what has come, and ends what is over. True if something was done.
 */
bool tb_ucx_moves_go_on(tb_ucx *ucx);

#endif
