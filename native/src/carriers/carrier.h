/*
 * The seam for carriers: who brings the buckets of a peer into this rank's memory.
 *
 * A stream carries them over the connections of the two ranks (conn_read.c, conn_write.c) and is no carrier
 * of this table. Nor is NCCL, whose sends and receives meet in steps that are known beforehand
 * (nccl_rounds.h); what it brings or takes is counted in the same transfer. All others are pulled: the source says
 * READY once a bucket was granted and all it waits for is done, the target moves its elements from the source's
 * memory into its own, with cast and fold, and says READ. Not a byte of a tensor passes a socket. Grants, waves,
 * folds, pools, receipts and failures are those of every round: a carrier decides nothing, it moves.
 *
 * At prepare (docs/wire-protocol.md, "Carriers"), PREPARE says which carriers a session may use, on which
 * host it runs and where its tensors lie. Both ends compute tb_carrier_select of the two, and so agree
 * without a word; where there is none, both fail with TB_UNSUPPORTED and what lacks. Then the source exports:
 * `describe` fills a tb_wire_region for each registered region, and for the pool, that its chunks to this
 * peer lie in, and export.c adds the ends. The target takes it in a thread, without the lock: import.c
 * compares every end with its own program (element type, number of elements) and with its region, which no
 * descriptor may leave; then `open` reaches for the regions: maps, opens handles, or finds that it must not.
 * Only then it says MATCH. Where it cannot, it says MATCH for the stream if both sides allow that, or
 * RELEASE for good.
 *
 * In a round, a thread of the session calls, for each bucket that is READY, `move` or `submit`. `move` moves
 * up to about `limit` bytes at once and says whether there are more (shared memory). `submit` hands a tb_pull
 * to a worker of the carrier's own and returns at once; the worker calls tb_pull_end, exactly once for each,
 * in any order, from any thread (CUDA, NCCL). Buckets come in the order (wave, stage, channel, sequence), and
 * all that are READY are submitted, so that a worker may take several at a time, for example all of
 * pull->wave in one group.
 *
 * Both look at tb_pull_stopped before they touch memory. A round that fails sets it, waits for every pull
 * that has begun, and then answers the source with QUIET: the source's round ends, and its memory is free,
 * when all its targets have. So a worker never just drops a pull, and ends it within the session's
 * quiesce_ms, or memory is quarantined on both sides.
 *
 * Where a bucket lies: pull->bucket is one of pull->transfer->program, with its chunks. tb_import_end gives the
 * source end of a chunk: region, offset, descriptor and element type; the target's end is that of the program
 * (tb_flow_start_end). A bucket from this rank to itself has no import (pull->exchange is NULL), and both its
 * ends are the program's; it is submitted to transfer->mover where one was set at prepare, for memory that the
 * session's threads do not reach.
 *
 * A carrier that needs the source to act as well (IPC events before READY, both halves of a send) gets
 * `ready`, which the source calls with the lock held before it says READY for these buckets, and may return
 * false to say it later itself, by tb_carrier_ready.
 */
#ifndef TB_CARRIER_H
#define TB_CARRIER_H

#include "round/thread.h"

enum tb_carrier_number {
    TB_CARRIER_STREAM = 0,
    TB_CARRIER_SHM = 1,
    TB_CARRIER_CUDA_IPC = 2,
    TB_CARRIER_NCCL = 3,
    TB_CARRIERS,
};

enum tb_memory_bits { TB_MEMORY_HOST = 1, TB_MEMORY_SHARED = 2, TB_MEMORY_CUDA = 4 };

/* ---- what a target knows of a source's memory ---------------------------------------------------------- */

enum tb_import_state {
    TB_IMPORT_COMING,  /* parts of it are to come */
    TB_IMPORT_WAITING, /* for a thread */
    TB_IMPORT_OPENING, /* a thread has it */
    TB_IMPORT_OPEN,
};

struct tb_import {
    tb_import *next; /* that wait for a thread */
    tb_session *session;
    tb_exchange *exchange; /* NULL where it is not wanted any more */
    const struct tb_carrier *carrier;
    enum tb_import_state state;
    int32_t rank; /* the source, its number of the transfer, and its process */
    uint64_t remote;
    tb_wire_identity identity;
    uint8_t nonce[16]; /* that we have asked it to place in its book */
    uint8_t *bytes; /* as exported */
    uint64_t byte_count, got, limit;
    const tb_wire_region *regions;
    const tb_wire_end *ends;
    const int64_t *words;
    uint32_t region_count, end_count;
    uint64_t word_count;
    uint32_t first_chunk[TB_STAGES]; /* of the channel in the target's program */
    uint32_t first_end[TB_STAGES];   /* and the end of that chunk */
    void *opened;                    /* the carrier's own */
};

/* The source end of a chunk of a channel that is pulled. */
static inline const tb_wire_end *tb_import_end(const tb_import *import, uint8_t stage, uint32_t chunk) {
    return &import->ends[import->first_end[stage] + (chunk - import->first_chunk[stage])];
}

/* ---- a bucket that is moved ---------------------------------------------------------------------------- */

struct tb_pull {
    tb_transfer *transfer;
    tb_exchange *exchange; /* of the source; NULL: from this rank to itself */
    const tb_import *import;
    uint32_t bucket;
    uint32_t wave;
    uint64_t bytes;
    void *own; /* the carrier's */
};

/* True where the round has failed: memory of either side must not be touched from here on. */
static inline bool tb_pull_stopped(const tb_pull *pull) {
    return atomic_load(&pull->transfer->stop);
}

/*
 * A submitted pull is over: neither side's memory is touched for it any more. code TB_OK: all of it was
 * moved, and is seen by whatever reads the target's memory next. Else why not, and the rank where that began.
 * Frees the pull. Without the lock, from any thread.
 */
void tb_pull_end(tb_pull *pull, int32_t code, int32_t rank, int os_errno, const char *message);

/* ---- the table ----------------------------------------------------------------------------------------- */

enum tb_moved { TB_MOVED_PART, TB_MOVED_ALL, TB_MOVED_NOT };

typedef struct tb_carrier {
    const char *name;
    uint32_t memory;                /* bits of the kinds of memory that it reaches, at either end */
    bool same_host;                 /* both ends must be processes of one user on one host */
    bool same_device, other_device; /* the two ends may lie on the same GPU, on different ones */
    /*
     * Source: describes a region of this session for its peers. address, bytes: all of it. row->memory,
     * number and bytes are filled in. The lock is held.
     */
    int32_t (*describe)(tb_session *session, const tb_region *region, tb_wire_region *row, tb_error *err);
    /*
     * Target: reaches for all regions of an import whose contents were checked; import->opened is its own.
     * side stays meanwhile, even where the import is dropped. In a thread, without the lock. TB_EUNSUPPORTED
     * where this machine does not let it: then a stream may do.
     */
    int32_t (*open)(tb_import *import, const tb_exchange *exchange, tb_error *err);
    /* Gives back what open took; also where open failed. Without the lock. */
    void (*close)(tb_import *import);
    /* One of the two, see above. *err is filled where TB_MOVED_NOT is given. */
    enum tb_moved (*move)(tb_job *job, uint64_t limit, tb_error *err);
    void (*submit)(tb_pull *pull);
    /* May be NULL. The lock is held. */
    bool (*ready)(tb_exchange *exchange, uint8_t stage, uint32_t first, uint32_t count);
} tb_carrier;

/* NULL for the stream, and for those that this build does not have. */
extern const tb_carrier *const tb_carriers[TB_CARRIERS];
extern const tb_carrier tb_carrier_shm;
extern const tb_carrier tb_carrier_cuda_ipc;

/* What this session says of itself in PREPARE, but for memory. Reads /proc: when a session is opened. */
int32_t tb_host_identify(tb_session *session, tb_error *err);
/* True while the process that was there when this was said is still there. Reads /proc. */
bool tb_identity_lives(const tb_wire_identity *identity);

/*
 * The carrier of a pair: a pure function of what both have said, the same whichever end asks. TB_EUNSUPPORTED
 * where there is none, or TB_EDEVICE_SHARED where NCCL lacks but a GPU for each; the message names what lacks.
 */
int32_t tb_carrier_select(const tb_wire_identity *lower, const tb_wire_identity *higher, uint32_t flags,
                          enum tb_carrier_number *carrier, tb_error *err);

/* ---- export.c, import.c: prepare; the lock is held unless a comment says otherwise --------------------- */

/* Says all that a side's peer may read. */
int32_t tb_export_say(tb_exchange *exchange, tb_error *err);
/* What is to come of a peer; NULL where there is no memory. */
tb_import *tb_import_create(tb_exchange *exchange);
int32_t tb_import_take(tb_import *import, const uint8_t *part, uint64_t bytes, tb_error *err);
/* Checks and opens the next one that waits: in a thread. False where there is none. */
bool tb_import_serve(tb_session *session);
/* Nobody wants it any more. It goes at once, or once the thread that has it is done. */
void tb_import_drop(tb_import *import);
/* Frees it. Without the lock. */
void tb_import_free(tb_import *import);

/* ---- round_pull.c: rounds; the lock is held ------------------------------------------------------------ */

/* Source: a granted bucket waits for nothing any more. What was gathered goes out with tb_pulls_say. */
void tb_pulls_ready(tb_transfer *transfer, uint32_t bucket);
void tb_pulls_say(tb_transfer *transfer);
/* Says READY at once for buckets that a carrier's `ready` had kept back. */
void tb_carrier_ready(tb_exchange *exchange, uint8_t stage, uint32_t first, uint32_t count);
/* Target: all contributions of stage 0 are granted at once, and take no slot. */
void tb_pulls_grant(tb_transfer *transfer);
/* Frames. */
int32_t tb_pulls_on_ready(tb_exchange *exchange, const tb_wire_header *header, tb_error *err);
int32_t tb_pulls_on_read(tb_exchange *exchange, const tb_wire_header *header, tb_error *err);
void tb_pulls_on_quiet(tb_exchange *exchange, const tb_wire_header *header);
/* Source: the target has read all of a channel. */
void tb_pulls_taken(tb_exchange *exchange, uint32_t channel);
/* Source: the round failed. Counts the targets that may still read in transfer->active. */
void tb_pulls_await_quiet(tb_transfer *transfer);
/* Source: a target reads no more: it said so, its process is gone, or it let go of the transfer. */
void tb_pulls_are_quiet(tb_exchange *exchange);
/* Target: the source's round failed, and asks for quiet. */
void tb_pulls_owe_quiet(tb_exchange *exchange, uint64_t round);
/* A pull has begun, is over, and what to do with its bucket. */
void tb_pull_begin(tb_transfer *transfer, tb_exchange *exchange);
void tb_pull_over(tb_transfer *transfer, tb_exchange *exchange);
void tb_pull_finish(tb_transfer *transfer, tb_exchange *exchange, uint32_t bucket);
bool tb_is_pulled(const tb_transfer *transfer, uint32_t channel);
/* A contribution is here, or can be read: it is folded in its turn. */
void tb_pulls_came(tb_transfer *transfer, uint32_t bucket);

/* True where what a channel brings comes when it was granted, over the stream. */
static inline bool tb_is_streamed(const tb_transfer *transfer, uint32_t channel) {
    const tb_exchange *exchange = transfer->channels[channel].exchange;
    return exchange != NULL && exchange->carrier == TB_CARRIER_STREAM;
}

static inline bool tb_is_by_nccl(const tb_transfer *transfer, uint32_t channel) {
    const tb_exchange *exchange = transfer->channels[channel].exchange;
    return exchange != NULL && exchange->carrier == TB_CARRIER_NCCL;
}

#endif
