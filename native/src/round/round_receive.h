/*
 * Receiving: what is granted in which order, and what becomes of a bucket that comes. The session's lock is held in all
 * of these.
 */
#ifndef TB_ROUND_RECEIVE_H
#define TB_ROUND_RECEIVE_H

#include "round/transfer.h"
#include "wire/conn.h"

/*
 * Stages 1 and 2 are granted bucket by bucket, channels in turns: peersInFlight times bucketsInFlight buckets of
 * each stage at a time. What comes from an owner of reduced pieces stays out of it: such an owner's pool must
 * drain, or the folds that others wait for stop (docs/adr/0001-streaming.md).
 */
void tb_round_grant_pooled(tb_transfer *transfer);
void tb_round_grant_turns(tb_transfer *transfer, uint8_t stage);
void tb_round_announce(tb_transfer *transfer, uint32_t channel); /* sends a GRANT */
/*
 * A bucket begins to come. arrival->transfer is NULL if it is to be dropped. A code if the peer broke the
 * protocol.
 */
int32_t tb_round_arrive(tb_peer *peer, tb_arrival *arrival, tb_error *err);
/* It has come; whether it is good is decided here. Releases it. */
void tb_round_arrived(tb_stream *stream, const tb_arrival *arrival, const tb_wire_trailer *trailer, int32_t rank);
/* A bucket of a receive channel, or a channel's whole fold, is consumed. */
void tb_round_consumed(tb_transfer *transfer, uint32_t bucket);

#endif
