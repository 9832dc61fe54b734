/* A round, from its start to its end: when it is over is decided here. The session's lock is held in all of these. */
#ifndef TB_ROUND_H
#define TB_ROUND_H

#include "round/transfer.h"

void tb_round_start(tb_transfer *transfer, uint64_t round, uint64_t deadline);
/* Ends the round under way, here and at the peers. rank: where it began. Does nothing if there is none. */
void tb_round_fail(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message);
/* An operation that was counted in transfer->active has let go of memory. */
void tb_round_release(tb_transfer *transfer);
/* Ends the round if all is done. */
void tb_round_check(tb_transfer *transfer);
/* All that a bucket does is done. */
void tb_round_bucket_done(tb_transfer *transfer, uint32_t bucket);
void tb_round_offer(tb_transfer *transfer, uint32_t bucket); /* as a job */

#endif
