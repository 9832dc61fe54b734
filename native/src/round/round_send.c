/* Sending: which buckets wait for nothing any more, and which is next for a peer. The session's lock is held. */
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "round/round.h"
#include "round/round_fold.h"
#include "round/round_send.h"
#include "round/select.h"
#include "wire/peer.h"
#include "round/invariants.h"

void tb_round_ready(tb_transfer *transfer, uint32_t bucket) {
    const tb_program *program = &transfer->program;
    uint32_t index = program->buckets[bucket].channel;
    if (program->channels[index].direction == TB_LOCAL) {
        tb_bucket_become(transfer, bucket, TB_BUCKET_QUEUED);
        tb_round_offer(transfer, bucket);
        return;
    }
    tb_channel_state *state = &transfer->channels[index];
    if (state->granted_round == transfer->round && tb_bucket_sequence(program, bucket) < state->granted) {
        if (tb_way_of(transfer, index) == TB_WAY_PULL) {
            tb_pulls_ready(transfer, bucket);
            return;
        }
        tb_bucket_become(transfer, bucket, TB_BUCKET_QUEUED);
        tb_heap_push(&state->exchange->ready, bucket);
    }
}

void tb_round_apply_grant(tb_transfer *transfer, uint32_t channel, uint32_t from) {
    const tb_channel *row = &transfer->program.channels[channel];
    tb_channel_state *state = &transfer->channels[channel];
    for (uint32_t b = row->first_bucket + from; b < row->first_bucket + state->granted; b++) {
        if (transfer->waits[b] == 0 && transfer->buckets[b] == TB_BUCKET_IDLE) {
            tb_round_ready(transfer, b);
        }
    }
    tb_pulls_say(transfer);
    tb_peer_kick(state->exchange->peer);
}

/* Among several transfers that could send, the round that began first goes first. */
static tb_exchange *oldest_ready(const tb_peer *peer) {
    tb_exchange *oldest = NULL;
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = exchange->next) {
        if (exchange->ready.count > 0 && (oldest == NULL || exchange->transfer->started < oldest->transfer->started)) {
            oldest = exchange;
        }
    }
    return oldest;
}

bool tb_round_claim(tb_peer *peer, tb_frame *frame) {
    tb_exchange *exchange = oldest_ready(peer);
    if (exchange == NULL) {
        return false;
    }
    tb_transfer *transfer = exchange->transfer;
    uint32_t bucket = tb_heap_pop(&exchange->ready);
    const tb_channel *channel = tb_bucket_channel(&transfer->program, bucket);
    tb_bucket_become(transfer, bucket, TB_BUCKET_MOVING);
    transfer->channels[transfer->program.buckets[bucket].channel].done++;
    tb_touch_begin(transfer);
    frame->stream = &transfer->stream;
    frame->bucket = bucket;
    frame->checksum = (transfer->flags & TB_TRANSFER_CHECKSUM) != 0;
    frame->payload = transfer->program.buckets[bucket].bytes;
    frame->sent = 0;
    frame->good = false;
    frame->header = (tb_wire_header){
        .kind = TB_FRAME_DATA,
        .stage = channel->stage,
        .transfer = exchange->remote,
        .round = transfer->round,
        .body_bytes = frame->payload,
        .sequence = tb_bucket_sequence(&transfer->program, bucket),
    };
    tb_wire_seal(&frame->header);
    frame->crc = frame->checksum ? tb_wire_header_crc(&frame->header) : 0;
    tb_flow_start(&frame->flow, &transfer->places, bucket, false);
    return true;
}

void tb_round_sent(tb_stream *stream, uint32_t bucket) {
    tb_transfer *transfer = tb_transfer_of(stream);
    if (!transfer->failing) {
        tb_folds_read(transfer, bucket);
        tb_round_bucket_done(transfer, bucket);
    }
    tb_round_release(transfer);
}
