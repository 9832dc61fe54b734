/*
 * The seam for carriers: who brings the buckets of a peer into this rank's memory. carriers/registry.h lists them;
 * nothing here knows which there are. docs/adding-a-transport.md shows how one is added.
 *
 * There are three ways. A stream: buckets travel as frames over the connections of the two ranks, and wire/ moves them.
 * Jointly: several ranks move what they exchange in steps that are known beforehand, and the carrier says when a bucket
 * is there. By pulls: the source says READY once a bucket was granted and all it waits for is done, the target moves
 * its elements from the source's memory into its own, with cast and fold, and says READ; not a byte of a tensor passes
 * a socket. Grants, waves, folds, pools, receipts and failures are those of every round: a carrier decides nothing, it
 * moves.
 *
 * At prepare (docs/wire-protocol.md, "Carriers"), PREPARE says which carriers a session may use, on which host it runs
 * and where its tensors lie. Both ends compute tb_carrier_select of the two, and so agree without a word; if no carrier
 * fits, both fail with TB_UNSUPPORTED, naming what is missing. If it is one that pulls, the source exports: `describe`
 * puts into a blob whatever the carrier needs to know of each registered region, and of the pool, that the source's
 * chunks to this peer lie in, `describe_session` what it needs to know of the session, and export.c adds the ends. The
 * target takes it in a thread, without the lock: import.c compares every end with its own program (element type, number
 * of elements) and with its region, which no descriptor may leave; then `open` reaches for the regions: maps, opens
 * handles, or finds that it must not. Only then it says MATCH. If it cannot, it says MATCH for the stream if both sides
 * allow that, or RELEASE for good.
 *
 * In a round, a thread of the session calls, for each bucket that is READY, `move` or `submit`. `move` moves up to
 * about `limit` bytes at once and says whether there are more. `submit` hands a tb_pull to a worker of the carrier's
 * own and returns at once; the worker calls tb_pull_end, exactly once for each, in any order, from any thread. Buckets
 * come in the order (wave, stage, channel, sequence), and all that are READY are submitted, so that a worker may take
 * several at a time.
 *
 * `move` is called no more once the round has failed; a worker looks at tb_pull_stopped before it touches memory. A
 * round that fails sets it, waits for every pull that has begun, and then answers the source with QUIET: the source's
 * round ends, and its memory is free, when all its targets have. So a worker never just drops a pull, and ends it
 * within the session's quiesce_ms, or memory is quarantined on both sides.
 *
 * A bucket lies where pull->transfer->program says, with its chunks. tb_import_end gives the source end of a chunk:
 * region, offset, descriptor and element type; the target's end is that of the program (tb_flow_start_end). A bucket
 * from this rank to itself has no import (pull->exchange is NULL), and both its ends are the program's; it is submitted
 * to transfer->mover if one was set at prepare, for memory that the session's threads do not reach.
 */
#ifndef TB_CARRIER_H
#define TB_CARRIER_H

#include "round/import.h"
#include "round/round_pull.h"
#include "round/thread.h"

enum tb_memory_bits { TB_MEMORY_HOST = 1, TB_MEMORY_SHARED = 2, TB_MEMORY_CUDA = 4 };

/* ---- the table ----------------------------------------------------------------------------------------- */

enum tb_moved { TB_MOVED_PART, TB_MOVED_ALL, TB_MOVED_NOT };

enum tb_way { TB_WAY_STREAM = 1, TB_WAY_PULL = 2, TB_WAY_JOINT = 4 };

enum {
    TB_BLOB_BYTES = 1024,          /* the most that a carrier says of a region, */
    TB_SESSION_BLOB_BYTES = 16384, /* and of a session */
};

typedef struct tb_carrier {
    /* ---- facts: all of them say something ---- */
    uint32_t number; /* the number of its bit in tb_carrier_bits */
    const char *name;
    enum tb_way way;
    uint32_t memory; /* bits of the kinds of memory that it reaches, at either end */
    bool same_host;  /* both ends must be processes of one user on one host */
    bool checksums;  /* it compares checksums of buckets */
    /*
     * What else keeps two ranks from using it; NULL if nothing does. words: room for a text of its own. *code may be
     * made another one than TB_EUNSUPPORTED. May be NULL.
     */
    const char *(*lacks)(const tb_wire_identity *a, const tb_wire_identity *b, char *words, size_t size, int32_t *code);

    /*
     * ---- a session that may use it: each may be NULL. All but session_open are called for every session, also for one
     * that does not use it: then session->carrier_state[number] is NULL ----
     */
    /* When the session opens, before its threads run: session->carrier_state[number] is the carrier's own. */
    int32_t (*session_open)(tb_session *session, tb_error *err);
    /* The session ends: everything of the carrier's own does. The lock is held. */
    void (*session_stop)(tb_session *session);
    /* Waits for that; false if it takes longer. Without the lock. */
    bool (*session_rest)(tb_session *session, uint64_t until);
    /*
     * Gives back what the session took; also if session_open failed. TB_EQUARANTINED if something of it still runs, and
     * may touch what was registered: that, and the session's device, are left to it.
     */
    int32_t (*session_free)(tb_session *session, tb_error *err);

    /* ---- memory, for a carrier that registers it before it moves it: both may be NULL ---- */
    /*
     * The session may move memory from here on: a region of its caller, or the pool of a transfer. *state is the
     * carrier's own, and is region->carrier_state[number] whenever the region is shown to it. It may take long. A
     * region that cannot be registered is none of the session's: the code goes to the caller. Without the lock.
     */
    int32_t (*region_add)(tb_session *session, const tb_region *region, void **state, tb_error *err);
    /*
     * This rank moves it no more, and the caller may unmap it. If a peer may still read it (a round that failed has
     * left it in quarantine), what the peer reads from here on has to fail. Without the lock.
     */
    void (*region_remove)(tb_session *session, const tb_region *region, void *state);

    /* ---- TB_WAY_PULL ---- */
    /*
     * Source: puts what a target has to know of a region into the blob; *bytes: how much, at most TB_BLOB_BYTES.
     * number: of the region in the session, or TB_WIRE_POOL. The lock is held.
     */
    int32_t (*describe)(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                        tb_error *err);
    /* Source: the same of the session itself, at most TB_SESSION_BLOB_BYTES. May be NULL. The lock is held. */
    int32_t (*describe_session)(tb_session *session, void *blob, uint32_t *bytes, tb_error *err);
    /* Source: all regions were described to that peer. May be NULL. The lock is held. */
    void (*described)(const tb_exchange *exchange);
    /*
     * Target: reaches for all regions of an import whose contents were checked; import->opened is its own. The exchange
     * stays meanwhile, even if the import is dropped. In a thread, without the lock. TB_EUNSUPPORTED if this machine
     * does not let it: then a stream may do.
     */
    int32_t (*open)(tb_import *import, const tb_exchange *exchange, tb_error *err);
    /*
     * Gives back what open took; also if open failed or was never called: import->opened is NULL then. Without the
     * lock.
     */
    void (*close)(tb_import *import);
    /*
     * One of the two, see above; submit also for TB_WAY_JOINT. *err is filled if TB_MOVED_NOT is given. Several threads
     * of the session may be in `move` at once, each with a job of its own, also for one import. It must not wait for
     * the peer.
     */
    enum tb_moved (*move)(tb_job *job, uint64_t limit, tb_error *err);
    void (*submit)(tb_pull *pull);

    /* ---- TB_WAY_JOINT: the lock is held unless a comment says otherwise ---- */
    /* This rank takes part in the steps of a transfer: fills in transfer->joint. Without the lock. */
    int32_t (*plan)(tb_transfer *transfer, tb_error *err);
    /* Gives back what plan took. Without the lock. */
    void (*transfer_free)(tb_transfer *transfer);
    /* Something of it goes on outside of rounds: the transfer must not be released. */
    bool (*busy)(const tb_transfer *transfer);
    /*
     * A round begins, of a transfer whose members begin rounds together; whether or not this rank takes part in steps.
     */
    void (*round_begin)(tb_transfer *transfer);
    /* From here on only if this rank takes part in steps: transfer->joint.own is set. */
    void (*round_failed)(tb_transfer *transfer);
    /* A frame of the carrier's own: TB_FRAME_CARRIER and the next two. */
    int32_t (*frame)(tb_exchange *exchange, const tb_wire_header *header, tb_error *err);
    /* A peer gave the round up, with that code, whether it is under way here or not. */
    void (*peer_aborted)(tb_exchange *exchange, uint64_t round, int32_t code);
    /* A peer has released the transfer, for that reason: it has nothing under way, and says nothing more of it. */
    void (*peer_released)(tb_exchange *exchange, const tb_error *why);
    void (*peer_gone)(tb_exchange *exchange, const char *why);
} tb_carrier;

/* ---- memory of devices --------------------------------------------------------------------------------- */

enum { TB_PIECE_WORDS = 5 };

/* What a session asks of the device that its tensors may lie on. Calls block, and are made without the lock. */
typedef struct tb_device_kind {
    int32_t (*open)(const uint8_t uuid[16], tb_device **device, tb_error *err);
    /*
     * Nothing of this session is under way there any more. TB_EQUARANTINED if the device itself does not come to rest.
     */
    int32_t (*close)(tb_device *device, uint32_t quiesce_ms, tb_error *err);
    /* How peers reach memory of the device. TB_EREGION if it is none, or not the device's. */
    int32_t (*describe)(tb_device *device, uint64_t address, uint64_t bytes, tb_device_memory *memory, tb_error *err);
    /* The pool of a transfer, and what it needs to move buckets from this rank to itself: sets transfer->mover. */
    int32_t (*transfer_allocate)(tb_transfer *transfer, tb_error *err);
    void (*transfer_free)(tb_transfer *transfer);
    /*
     * The descriptor of a finished piece. One of 16- or 8-bit floats stays where its accumulators are: its elements lie
     * as far apart as those.
     */
    void (*piece_words)(const tb_piece *piece, int64_t words[TB_PIECE_WORDS]);
} tb_device_kind;

#endif
