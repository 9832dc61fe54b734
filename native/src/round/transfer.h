/*
 * A transfer: a program that is bound to memory and agreed with its peers, and its rounds. The session's lock guards
 * all of it but the stream (flow/stream.h).
 *
 * Four counters say who may touch memory: `active` of a transfer counts every operation of a round, and every round
 * ends at 0; `pulling`, of a transfer and of an exchange, counts those of them that read in a peer's memory; `exposed`
 * of an exchange counts the buckets that a peer may read in ours; `stale_pulls` of the session counts the `pulling` of
 * rounds that have failed, and keeps connections open until it is 0.
 */
#ifndef TB_TRANSFER_H
#define TB_TRANSFER_H

#include "base/heap.h"
#include "flow/flow.h"
#include "round/aborts.h"
#include "round/session.h"

struct tb_cuda_moves;

enum { TB_EARLY = 1024 }; /* prepares of a peer that are kept for a transfer of ours that is still to come */

typedef struct tb_early {
    struct tb_early *next;
    tb_wire_prepare prepare;
    tb_wire_channel channels[2 * TB_STAGES];
    char key[TB_KEY_BYTES + 1];
} tb_early;

/* What a transfer has to do with one peer. */
struct tb_exchange {
    tb_transfer *transfer;
    tb_peer *peer;
    tb_exchange *next; /* the peer's next one */
    uint64_t remote; /* the peer's number of the transfer; 0 until its PREPARE came */
    bool told;       /* our PREPARE went out */
    bool matched;    /* the peer has paired its transfer with this one, too */
    bool gone;       /* the peer, or its transfer, went away after all */
    bool pooled;     /* the peer owns reduced pieces */
    uint32_t unfinished; /* channels of the round under way, and the link */
    bool linked;         /* a round of the two ends only once both have begun it */
    bool awaited;        /* linked, and the peer has not begun the round under way */
    uint64_t here;       /* the latest round that the peer has begun */
    uint32_t send[TB_STAGES], receive[TB_STAGES]; /* channels, or TB_NONE */
    tb_heap ready; /* buckets, in the order of their numbers: (wave, stage, channel, sequence) */
    /* Carriers (carrier.h). */
    const struct tb_carrier *carrier; /* that moves what goes between the two */
    tb_wire_identity identity;   /* the peer's */
    bool said_match;     /* our MATCH went out */
    tb_import *import;   /* what the peer exports */
    uint32_t exposed;    /* send: buckets that the peer may read now */
    bool awaits_quiet;   /* send: a round failed, and the peer may still read */
    uint32_t pulling;    /* receive: buckets that are being read */
    uint64_t owes_quiet; /* receive: the round in which the peer waits for that; 0: none */
    bool jointly;    /* what the two exchange is to be moved jointly, as the caller has said */
    bool joins;      /* the peer takes part in joint steps */
    bool together;   /* it begins rounds with this rank */
    uint64_t joined; /* what its PREPARE said: as of the transfer */
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

typedef struct tb_pool {
    uint8_t *memory;
    uint64_t ring;       /* bytes for pieces */
    uint64_t bytes;      /* mapped, with what is shared of piece_at behind the pieces, or 0 of that */
    uint64_t *shared_at; /* a copy of piece_at for those who pull; NULL: nobody */
    uint64_t *piece_at;  /* offset in memory */
    uint64_t *piece_end; /* on the endless line that the ring is wound from */
    uint32_t *order;     /* pieces by their place on that line */
    uint32_t *readers;   /* chunks that are still to read it; TB_NONE if it is free */
    uint32_t placed, freed; /* positions in order */
    uint64_t head, tail; /* on the line */
    uint64_t *fixed_at;     /* on a GPU: where each piece lies, which is the same in every round */
    tb_device_memory device;
    tb_region region; /* what peers may read of it, as carriers know it */
} tb_pool;

struct tb_transfer {
    union { /* first: what moves its bytes knows the stream alone */
        struct tb_stream;
        tb_stream stream;
    };
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
    void (*mover)(tb_pull *pull); /* moves what goes from this rank to itself; NULL: the session's threads do */
    struct {
        const struct tb_carrier *carrier; /* that moves some of its buckets jointly; NULL: none does */
        void *own;                        /* the carrier's; NULL: this rank takes no part in steps */
        bool alone;                       /* it moves all of them, and what goes from this rank to itself */
        uint64_t bytes;                   /* how much staging memory it takes */
    } joint;
    /* The ranks that begin its rounds together, and the one that leads them: NULL and -1 if nobody waits for others. */
    tb_member *members;
    uint32_t member_count;
    int32_t leader;
    uint64_t joined; /* a fingerprint of those who join; 0: this rank does not */
    tb_exchange *exchanges;
    uint32_t exchange_count;
    /* For the event that ends the prepare or round under way: it must not fail for want of memory. */
    tb_event_node *reserved;
    uint64_t deadline; /* when the prepare or round under way ends as late; 0: never */

    /* The round under way or the last one. */
    uint64_t round;
    uint64_t started;
    bool failing;
    tb_error error;
    uint32_t active;
    uint32_t pulling;        /* those of `active` that are pulled buckets */
    uint64_t quiet_deadline; /* until then targets of a failed round are waited for; 0: none is */
    bool quarantined;
    bool refused; /* its prepare failed for a reason that another attempt would meet as well */
    bool moved;   /* a peer has begun it anew, since something was not where it was said to be */
    /* Buckets for which READY is to be said: those of one exchange and one stage, in a row. */
    struct {
        tb_exchange *exchange;
        uint8_t stage;
        uint32_t first, count;
    } offer;
    tb_aborts aborts; /* rounds that were given up, here or elsewhere */
    tb_error aborted; /* why the last one was */
    uint32_t receives_left, sends_left, locals_left, links_left;
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
};

/* ---- transfer.c, transfer_memory.c, transfer_give_up.c -------------------------------------------------- */

/* The transfer that a stream is part of. */
static inline tb_transfer *tb_transfer_of(tb_stream *stream) {
    return (tb_transfer *)stream;
}

/* A transfer of the session by its number; NULL and TB_ECLOSED if there is none. The session's lock is held. */
tb_transfer *tb_transfer_find(tb_session *session, uint64_t handle, tb_error *err);
/* Frees a transfer that nothing refers to any more. */
void tb_transfer_free(tb_transfer *transfer);
/* The tables and memory of a transfer whose program is loaded. */
int32_t tb_transfer_allocate(tb_transfer *transfer, tb_error *err);
/* Ends the prepare or round under way with that code. The session's lock is held. */
void tb_transfer_give_up(tb_transfer *transfer, int32_t code);
/* The lowest rank that has not begun the round under way, among those that it waits for; NULL if all have. */
const tb_exchange *tb_transfer_absent(const tb_transfer *transfer);

#endif
