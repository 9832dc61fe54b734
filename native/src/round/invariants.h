/*
 * The four counters of who may touch memory (transfer.h), and the states of transfers and buckets: each of them changes
 * in one of these functions and nowhere else, which check what must hold in every build. The session's lock is held.
 */
#ifndef TB_INVARIANTS_H
#define TB_INVARIANTS_H

#include "base/invariant.h"
#include "round/transfer.h"

/* ---- who may touch memory ------------------------------------------------------------------------------ */

/* Something begins that touches memory of a round, or what a prepare reaches for. */
static inline void tb_touch_begin(tb_transfer *transfer) {
    TB_INVARIANT(transfer->state == TB_TRANSFER_RUNNING || transfer->state == TB_TRANSFER_PREPARING);
    transfer->active++;
}

/* So many of them have let go of it. */
static inline void tb_touch_end(tb_transfer *transfer, uint32_t count) {
    TB_INVARIANT(transfer->active >= count);
    transfer->active -= count;
    TB_INVARIANT(transfer->pulling <= transfer->active);
}

/* A bucket is being read in the memory of that peer. */
static inline void tb_touch_begin_pull(tb_transfer *transfer, tb_exchange *exchange) {
    TB_INVARIANT(!transfer->failing && exchange->owes_quiet == 0);
    tb_touch_begin(transfer);
    transfer->pulling++;
    exchange->pulling++;
}

/*
 * It is not any more; the operation itself is ended by tb_touch_end. True if the last pull of a round that has failed
 * is over, of all rounds of the session.
 */
static inline bool tb_touch_end_pull(tb_transfer *transfer, tb_exchange *exchange) {
    tb_session *session = transfer->session;
    TB_INVARIANT(transfer->pulling > 0 && exchange->pulling > 0);
    transfer->pulling--;
    exchange->pulling--;
    if (!transfer->failing) {
        return false;
    }
    TB_INVARIANT(session->stale_pulls > 0);
    return --session->stale_pulls == 0;
}

/* The round has failed: what it still pulls keeps connections open. */
static inline void tb_touch_goes_stale(tb_transfer *transfer) {
    transfer->session->stale_pulls += transfer->pulling;
}

/* The peer may read a bucket in this rank's memory. */
static inline void tb_touch_expose(tb_exchange *exchange) {
    TB_INVARIANT(exchange->transfer->state == TB_TRANSFER_RUNNING && !exchange->transfer->failing);
    exchange->exposed++;
    TB_INVARIANT(exchange->exposed <= exchange->transfer->program.header->bucket_count);
}

/* It has read it. */
static inline void tb_touch_unexpose(tb_exchange *exchange) {
    TB_INVARIANT(exchange->exposed > 0);
    exchange->exposed--;
}

/* It reads nothing any more. */
static inline void tb_touch_unexpose_all(tb_exchange *exchange) {
    exchange->exposed = 0;
}

/* ---- states -------------------------------------------------------------------------------------------- */

void tb_transfer_become(tb_transfer *transfer, enum tb_transfer_state state);

/* By the state that a bucket has: the bits of those that it may have next. */
extern const uint8_t tb_bucket_next[];

static inline void tb_bucket_become(tb_transfer *transfer, uint32_t bucket, enum tb_bucket_state state) {
    TB_INVARIANT((tb_bucket_next[transfer->buckets[bucket]] >> state & 1) != 0);
    transfer->buckets[bucket] = (uint8_t)state;
}

#endif
