/*
 * What a round decides: who may send, what comes next, when it is over. The session's lock is held in all of
 * these.
 */
#ifndef TB_ROUND_H
#define TB_ROUND_H

#include "round/thread.h"
#include "wire/conn.h"

/* ---- round.c ------------------------------------------------------------------------------------------- */

void tb_round_start(tb_transfer *transfer, uint64_t round, uint64_t deadline);
/* Ends the round under way, here and at the peers. rank: where it began. Does nothing where there is none. */
void tb_round_fail(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message);
/* An operation that was counted in transfer->active has let go of memory. */
void tb_round_release(tb_transfer *transfer);
/* Ends the round where all is done. */
void tb_round_check(tb_transfer *transfer);
/* All that a bucket does is done. */
void tb_round_bucket_done(tb_transfer *transfer, uint32_t bucket);
/* A bucket of a receive channel, or a channel's whole fold, is consumed. */
void tb_round_consumed(tb_transfer *transfer, uint32_t bucket);
void tb_round_offer(tb_transfer *transfer, uint32_t bucket); /* as a job */

/* ---- round_send.c -------------------------------------------------------------------------------------- */

/* A bucket waits for nothing any more but, perhaps, its grant. */
void tb_round_ready(tb_transfer *transfer, uint32_t bucket);
void tb_round_apply_grant(tb_transfer *transfer, uint32_t channel, uint32_t from);
/* Takes the next bucket that may be sent to a peer; false where there is none. Counts it in transfer->active. */
bool tb_round_claim(tb_peer *peer, tb_frame *frame);
/* Its last byte is with the link. Releases it. */
void tb_round_sent(tb_stream *stream, uint32_t bucket);

/* ---- round_receive.c ----------------------------------------------------------------------------------- */

/*
 * Stages 1 and 2 are granted bucket by bucket, channels in turns: peersInFlight times bucketsInFlight buckets of
 * each stage at a time. What comes from an owner of reduced pieces stays out of it: such an owner's pool must
 * drain, or the folds that others wait for stop (docs/adr/0001-streaming.md).
 */
void tb_round_grant_pooled(tb_transfer *transfer);
void tb_round_grant_turns(tb_transfer *transfer, uint8_t stage);
void tb_round_announce(tb_transfer *transfer, uint32_t channel); /* sends a GRANT */
/*
 * A bucket begins to come. arrival->transfer is NULL where it is to be dropped. A code where the peer broke the
 * protocol.
 */
int32_t tb_round_arrive(tb_peer *peer, tb_arrival *arrival, tb_error *err);
/* It has come; whether it is good is decided here. Releases it. */
void tb_round_arrived(tb_stream *stream, const tb_arrival *arrival, const tb_wire_trailer *trailer, int32_t rank);

/* ---- round_fold.c -------------------------------------------------------------------------------------- */

void tb_folds_reset(tb_transfer *transfer);
/* Where each piece will lie in every round, for who must know it beforehand. Without the lock. */
void tb_folds_fix_places(tb_transfer *transfer);
/* Allows contributions to come in, in the order of the folds, as far as slots and the pool reach. */
void tb_folds_allow(tb_transfer *transfer);
bool tb_folds_turn(const tb_transfer *transfer, uint32_t bucket);
void tb_folds_done(tb_transfer *transfer, uint32_t bucket);
/* A bucket that was sent or copied has read its pieces. */
void tb_folds_read(tb_transfer *transfer, uint32_t bucket);

/* ---- round_job.c --------------------------------------------------------------------------------------- */

/* Takes the next thing that a thread of this session can move by itself. Counts it in transfer->active. */
bool tb_round_take_job(tb_session *session, tb_job *job);
/* Releases it. */
void tb_round_job_done(tb_job *job);
/* Its round has failed: releases it as it is. */
void tb_round_job_dropped(tb_job *job);
/* A bucket from this rank to itself was moved. Releases it. */
void tb_round_moved(tb_transfer *transfer, uint32_t bucket);
/* The next time to look at targets that a failed round waits for; 0: there are none. */
uint64_t tb_pulls_look(tb_transfer *transfer, uint64_t now);

/* Without the lock. False once there is no more to do. */
bool tb_job_slice(tb_job *job, uint64_t limit);
/* Hands it to its carrier's worker, where it has one; false where it has none. Without the lock. */
bool tb_job_submit(tb_job *job);

/* ---- transfer_meet.c: prepare ----------------------------------------------------------------------------- */

void tb_transfer_say_prepare(tb_exchange *exchange);
void tb_transfer_say_match(tb_exchange *exchange);
void tb_transfer_fail_prepare(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message);
/* Its prepare fails, and that of its peers with it: another attempt would not do. */
void tb_transfer_refuse(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message);
/* Ends a prepare that failed, once no thread is at it any more. */
void tb_transfer_end_late(tb_transfer *transfer);
void tb_transfer_check_prepared(tb_transfer *transfer);
void tb_transfer_meet_early(tb_exchange *exchange);
void tb_transfer_leave_peers(tb_transfer *transfer);
void tb_transfer_let_regions_go(tb_transfer *transfer);
/* The peer gave it up. */
void tb_transfer_drop_early(tb_peer *peer, uint64_t remote);
void tb_transfer_forget_attempt(tb_exchange *exchange);
int32_t tb_transfer_on_prepare(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err);
int32_t tb_transfer_on_match(tb_exchange *exchange, const tb_wire_header *header, tb_error *err);
int32_t tb_transfer_on_export(tb_exchange *exchange, const tb_wire_header *header, const uint8_t *body, tb_error *err);

/* ---- peers.c --------------------------------------------------------------------------------------------- */

/* What connections ask and tell the rounds of a session. */
extern const tb_peer_handler tb_round_peers;

/* ---- transfer_peer.c: frames of peers --------------------------------------------------------------------- */

tb_exchange *tb_peer_exchange(tb_peer *peer, uint64_t transfer);
int32_t tb_transfer_on_frame(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err);
void tb_transfer_say_failure(tb_exchange *exchange, uint8_t kind, uint64_t number, const tb_error *error);

#endif
