/*
 * Rounds of channels whose buckets the target reads in the source's memory. The session's lock is held unless a comment
 * says otherwise.
 */
#ifndef TB_ROUND_PULL_H
#define TB_ROUND_PULL_H

#include "round/import.h"

/* ---- a bucket that is moved: for carriers --- */

struct tb_pull {
    tb_transfer *transfer;
    tb_exchange *exchange; /* with the source; NULL: from this rank to itself */
    const tb_import *import;
    uint32_t bucket;
    uint64_t bytes;
};

/* True if the round has failed: memory of either side must not be touched from here on. */
static inline bool tb_pull_stopped(const tb_pull *pull) {
    return atomic_load(&pull->transfer->stop);
}

/*
 * A submitted pull is over: neither side's memory is touched for it any more. code TB_OK: all of it was
 * moved, and is seen by whatever reads the target's memory next. Else why not, and the rank where that began.
 * Frees the pull. Without the lock, from any thread.
 */
void tb_pull_end(tb_pull *pull, int32_t code, int32_t rank, int os_errno, const char *message);

/* ---- rounds --- */

/* The next time to look at targets that a failed round waits for; 0: there are none. */
uint64_t tb_pulls_look(tb_transfer *transfer, uint64_t now);
/* Source: a granted bucket waits for nothing any more. What was gathered goes out with tb_pulls_say. */
void tb_pulls_ready(tb_transfer *transfer, uint32_t bucket);
void tb_pulls_say(tb_transfer *transfer);
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
/* Target: that round failed at the source, which asks for quiet. It need not be the one under way here. */
void tb_pulls_owe_quiet(tb_exchange *exchange, uint64_t round);
/* A pull has begun, is over, and what to do with its bucket. */
void tb_pull_begin(tb_transfer *transfer, tb_exchange *exchange);
void tb_pull_over(tb_transfer *transfer, tb_exchange *exchange);
void tb_pull_finish(tb_transfer *transfer, tb_exchange *exchange, uint32_t bucket);
/* A contribution is here, or can be read: it is folded in its turn. */
void tb_pulls_came(tb_transfer *transfer, uint32_t bucket);

#endif
