/* Receiving: what is granted in which order, and what becomes of a bucket that comes. The session's lock is held. */
#include <stdio.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/round.h"
#include "flow/staging.h"
#include "round/round_fold.h"
#include "round/round_receive.h"
#include "round/select.h"
#include "round/transfer_peer.h"
#include "wire/peer.h"
#include "round/invariants.h"

/* More buckets below this size may be under way: they take less of a link than it takes to ask for one. */
enum { SMALL_BUCKET = 1024 * 1024 };

void tb_round_announce(tb_transfer *transfer, uint32_t channel) {
    tb_channel_state *state = &transfer->channels[channel];
    tb_wire_header header = {
        .kind = TB_FRAME_GRANT,
        .stage = transfer->program.channels[channel].stage,
        .count = state->granted,
        .transfer = state->exchange->remote,
        .round = transfer->round,
    };
    state->announce = false;
    tb_peer_say(state->exchange->peer, &header, NULL);
}

static void grant_all(tb_transfer *transfer, uint32_t channel) {
    transfer->channels[channel].granted = transfer->program.channels[channel].bucket_count;
    tb_round_announce(transfer, channel);
}

/* What is moved jointly was granted when the ranks began the round together. */
static bool is_granted(const tb_transfer *transfer, uint32_t index) {
    const tb_channel *channel = &transfer->program.channels[index];
    return channel->direction == TB_RECEIVE && channel->stage > 0 && tb_way_of(transfer, index) != TB_WAY_JOINT;
}

void tb_round_grant_pooled(tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->program.header->channel_count; i++) {
        if (is_granted(transfer, i) && transfer->channels[i].exchange->pooled) {
            grant_all(transfer, i);
        }
    }
}

static bool takes_turns(const tb_transfer *transfer, uint32_t channel) {
    return is_granted(transfer, channel) && !transfer->channels[channel].exchange->pooled;
}

void tb_round_grant_turns(tb_transfer *transfer, uint8_t stage) {
    const tb_program *program = &transfer->program;
    uint64_t most = (uint64_t)program->header->peers_in_flight * program->header->buckets_in_flight;
    uint64_t largest = program->header->bucket_bytes;
    uint64_t most_bytes = most * (largest < SMALL_BUCKET ? largest : SMALL_BUCKET);
    if (transfer->turns[stage].buckets >= most && transfer->turns[stage].bytes > most_bytes / 2) {
        return;
    }
    uint32_t first = transfer->turns[stage].next;
    while (transfer->turns[stage].next < program->turn_count[stage]
           && (transfer->turns[stage].buckets < most || transfer->turns[stage].bytes < most_bytes)) {
        uint32_t channel = program->turns[stage][transfer->turns[stage].next++];
        tb_channel_state *state = &transfer->channels[channel];
        if (!takes_turns(transfer, channel)) {
            continue;
        }
        uint32_t bucket = program->channels[channel].first_bucket + state->granted++;
        transfer->turns[stage].buckets++;
        transfer->turns[stage].bytes += program->buckets[bucket].bytes;
        state->announce = true;
    }
    for (uint32_t i = first; i < transfer->turns[stage].next; i++) {
        if (transfer->channels[program->turns[stage][i]].announce) {
            tb_round_announce(transfer, program->turns[stage][i]);
        }
    }
}

static int32_t check_bucket(const tb_transfer *transfer, uint32_t channel, const tb_wire_header *header,
                            tb_error *err) {
    const tb_channel *row = &transfer->program.channels[channel];
    if (header->sequence >= transfer->channels[channel].granted) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u was not granted", header->sequence,
                       header->stage);
    }
    uint32_t bucket = row->first_bucket + header->sequence;
    if (header->body_bytes != transfer->program.buckets[bucket].bytes) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u came with another size",
                       header->sequence, header->stage);
    }
    uint8_t expected = header->stage == 0 ? TB_BUCKET_ALLOWED : TB_BUCKET_IDLE;
    if (transfer->buckets[bucket] != expected) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u came twice", header->sequence,
                       header->stage);
    }
    return TB_OK;
}

int32_t tb_round_arrive(tb_peer *peer, tb_arrival *arrival, tb_error *err) {
    const tb_wire_header *header = &arrival->header;
    tb_exchange *exchange = tb_peer_exchange(peer, header->transfer);
    arrival->stream = NULL;
    if (exchange == NULL) {
        return TB_OK; /* it belongs to a transfer that was released here */
    }
    tb_transfer *transfer = exchange->transfer;
    if (header->stage >= TB_STAGES || exchange->receive[header->stage] == TB_NONE || header->round > transfer->round
        || tb_way_of(transfer, exchange->receive[header->stage]) == TB_WAY_PULL) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a bucket came that nobody asked for");
    }
    if (header->round < transfer->round || transfer->state != TB_TRANSFER_RUNNING || transfer->failing) {
        return TB_OK; /* it belongs to a round that failed here */
    }
    uint32_t channel = exchange->receive[header->stage];
    int32_t code = check_bucket(transfer, channel, header, err);
    if (code != TB_OK) {
        return code;
    }
    uint32_t bucket = transfer->program.channels[channel].first_bucket + header->sequence;
    tb_bucket_become(transfer, bucket, TB_BUCKET_MOVING);
    tb_touch_begin(transfer);
    arrival->stream = &transfer->stream;
    arrival->bucket = bucket;
    arrival->slot = TB_NONE;
    arrival->checksum = (transfer->flags & TB_TRANSFER_CHECKSUM) != 0;
    if (header->stage > 0 || tb_folds_turn(transfer, bucket)) {
        tb_flow_start(&arrival->flow, &transfer->places, bucket, true);
        return TB_OK;
    }
    /* There is a slot for every contribution that was allowed to come. */
    TB_INVARIANT(transfer->free_slot_count > 0);
    arrival->slot = transfer->free_slots[--transfer->free_slot_count];
    transfer->slot_of[bucket] = arrival->slot;
    tb_staging_add(&transfer->staging, header->body_bytes);
    tb_flow_start_row(&arrival->flow, transfer->slots + arrival->slot * transfer->program.slot_bytes,
                      header->body_bytes);
    return TB_OK;
}

static void finish_channel(tb_transfer *transfer, uint32_t channel) {
    tb_channel_state *state = &transfer->channels[channel];
    tb_wire_header taken = {
        .kind = TB_FRAME_TAKEN,
        .stage = transfer->program.channels[channel].stage,
        .transfer = state->exchange->remote,
        .round = transfer->round,
    };
    state->finished = true;
    TB_INVARIANT(state->exchange->unfinished > 0 && transfer->receives_left > 0);
    state->exchange->unfinished--;
    transfer->receives_left--;
    tb_peer_say(state->exchange->peer, &taken, NULL);
}

void tb_round_consumed(tb_transfer *transfer, uint32_t bucket) {
    uint32_t channel = transfer->program.buckets[bucket].channel;
    if (++transfer->channels[channel].done == transfer->program.channels[channel].bucket_count) {
        finish_channel(transfer, channel);
    }
    if (takes_turns(transfer, channel)) {
        uint8_t stage = transfer->program.channels[channel].stage;
        TB_INVARIANT(transfer->turns[stage].buckets > 0);
        transfer->turns[stage].buckets--;
        transfer->turns[stage].bytes -= transfer->program.buckets[bucket].bytes;
        tb_round_grant_turns(transfer, stage);
    }
}

static void take_bucket(tb_transfer *transfer, uint32_t bucket, uint32_t slot) {
    if (tb_bucket_channel(&transfer->program, bucket)->stage > 0) {
        tb_round_bucket_done(transfer, bucket);
        tb_round_consumed(transfer, bucket);
    } else if (slot == TB_NONE) {
        tb_folds_done(transfer, bucket);
    } else {
        tb_bucket_become(transfer, bucket, TB_BUCKET_STAGED);
        if (tb_folds_turn(transfer, bucket)) {
            tb_bucket_become(transfer, bucket, TB_BUCKET_QUEUED);
            tb_round_offer(transfer, bucket);
        }
    }
}

void tb_round_arrived(tb_stream *stream, const tb_arrival *arrival, const tb_wire_trailer *trailer, int32_t rank) {
    tb_transfer *transfer = tb_transfer_of(stream);
    bool good = trailer->verdict == TB_TRAILER_GOOD; /* if not, its sender gave up: the reason follows */
    if (arrival->checksum && good && trailer->crc != arrival->crc && !transfer->failing) {
        char message[160];
        snprintf(message, sizeof message,
                 "bucket %u of stage %u from rank %d: the CRC-32C is %08x, but the sender gave %08x",
                 arrival->header.sequence, arrival->header.stage, rank, arrival->crc, trailer->crc);
        tb_round_fail(transfer, TB_ECHECKSUM, transfer->session->options.rank, 0, message);
    }
    if (good && !transfer->failing) {
        take_bucket(transfer, arrival->bucket, arrival->slot);
    }
    tb_round_release(transfer);
}
