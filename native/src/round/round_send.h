/* Sending: who may send, and what comes next. The session's lock is held in all of these. */
#ifndef TB_ROUND_SEND_H
#define TB_ROUND_SEND_H

#include "round/transfer.h"
#include "wire/conn.h"

/* A bucket waits for nothing any more but, perhaps, its grant. */
void tb_round_ready(tb_transfer *transfer, uint32_t bucket);
void tb_round_apply_grant(tb_transfer *transfer, uint32_t channel, uint32_t from);
/* Takes the next bucket that may be sent to a peer; false if there is none. Counts it in transfer->active. */
bool tb_round_claim(tb_peer *peer, tb_frame *frame);
/* Its last byte is with the link. Releases it. */
void tb_round_sent(tb_stream *stream, uint32_t bucket);

#endif
