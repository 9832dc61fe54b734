/* What a thread of this rank moves by itself. The session's lock is held unless a comment says otherwise. */
#ifndef TB_ROUND_JOB_H
#define TB_ROUND_JOB_H

#include "round/thread.h"

/* Takes the next thing that a thread of this session can move by itself. Counts it in transfer->active. */
bool tb_round_take_job(tb_session *session, tb_job *job);
/* Releases it. */
void tb_round_job_done(tb_job *job);
/* Its round has failed: releases it as it is. */
void tb_round_job_dropped(tb_job *job);
/* A bucket from this rank to itself was moved. Releases it. */
void tb_round_moved(tb_transfer *transfer, uint32_t bucket);
/* Without the lock. False once there is no more to do. */
bool tb_job_slice(tb_job *job, uint64_t limit);
/* Hands it to its carrier's worker; false if the carrier has none. Without the lock. */
bool tb_job_submit(tb_job *job);

#endif
