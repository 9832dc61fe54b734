/*
 * Rounds of channels whose buckets the target reads in the source's memory: what the two say to each other,
 * and when the source's memory is free. The session's lock is held in all of this but tb_pull_end.
 *
 * A bucket of a source is exposed from READY until its target says READ, or TAKEN for the whole channel. A
 * round that fails with buckets exposed asks their targets for quiet by its ABORT, and stays under way until
 * each has said QUIET, has closed its connection (which it does not before it has come to rest), or is a
 * process that is gone. A connection that broke otherwise says nothing of the target.
 */
#include <stdio.h>
#include <stdlib.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "identity/identity.h"
#include "round/round.h"
#include "round/round_fold.h"
#include "round/round_job.h"
#include "round/round_receive.h"
#include "round/select.h"
#include "wire/peer.h"
#include "round/invariants.h"

#define LOOK_NS 10000000ull /* between two looks at a process whose connection was lost */

/* ---- the source ---------------------------------------------------------------------------------------- */

static void say_ready(tb_exchange *exchange, uint8_t stage, uint32_t first, uint32_t count) {
    tb_wire_header header = {.kind = TB_FRAME_READY,
                             .stage = stage,
                             .count = count,
                             .transfer = exchange->remote,
                             .round = exchange->transfer->round,
                             .sequence = first};
    tb_peer_say(exchange->peer, &header, NULL);
}

void tb_pulls_say(tb_transfer *transfer) {
    tb_exchange *exchange = transfer->offer.exchange;
    uint32_t count = transfer->offer.count;
    if (count == 0) {
        return;
    }
    transfer->offer.count = 0;
    say_ready(exchange, transfer->offer.stage, transfer->offer.first, count);
}

void tb_pulls_ready(tb_transfer *transfer, uint32_t bucket) {
    const tb_program *program = &transfer->program;
    uint32_t index = program->buckets[bucket].channel;
    uint32_t sequence = tb_bucket_sequence(program, bucket);
    uint8_t stage = program->channels[index].stage;
    tb_exchange *exchange = transfer->channels[index].exchange;
    bool goes_on = transfer->offer.count > 0 && transfer->offer.exchange == exchange && transfer->offer.stage == stage
                   && sequence == transfer->offer.first + transfer->offer.count;
    if (!goes_on) {
        tb_pulls_say(transfer);
        transfer->offer.exchange = exchange;
        transfer->offer.stage = stage;
        transfer->offer.first = sequence;
    }
    transfer->offer.count++;
    tb_bucket_become(transfer, bucket, TB_BUCKET_MOVING);
    transfer->channels[index].done++;
    tb_touch_expose(exchange);
}

static void was_read(tb_exchange *exchange, uint32_t bucket) {
    tb_transfer *transfer = exchange->transfer;
    tb_touch_unexpose(exchange);
    atomic_fetch_add_explicit(&transfer->bytes_sent, transfer->program.buckets[bucket].bytes, memory_order_relaxed);
    tb_folds_read(transfer, bucket);
    tb_round_bucket_done(transfer, bucket);
}

int32_t tb_pulls_on_read(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    tb_transfer *transfer = exchange->transfer;
    uint32_t channel = header->stage < TB_STAGES ? exchange->send[header->stage] : TB_NONE;
    if (channel == TB_NONE || header->sequence >= transfer->program.channels[channel].bucket_count) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt came for a bucket that does not exist");
    }
    if (header->round != transfer->round || transfer->state != TB_TRANSFER_RUNNING || transfer->failing) {
        return TB_OK;
    }
    uint32_t bucket = transfer->program.channels[channel].first_bucket + header->sequence;
    if (tb_way_of(transfer, channel) != TB_WAY_PULL || transfer->buckets[bucket] != TB_BUCKET_MOVING) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt came for a bucket that is not being read");
    }
    was_read(exchange, bucket);
    return TB_OK;
}

void tb_pulls_taken(tb_exchange *exchange, uint32_t channel) {
    tb_transfer *transfer = exchange->transfer;
    const tb_channel *row = &transfer->program.channels[channel];
    for (uint32_t b = row->first_bucket; b < row->first_bucket + row->bucket_count; b++) {
        if (transfer->buckets[b] == TB_BUCKET_MOVING) {
            was_read(exchange, b);
        }
    }
}

/* ---- the source's memory ------------------------------------------------------------------------------- */

void tb_pulls_await_quiet(tb_transfer *transfer) {
    tb_session *session = transfer->session;
    transfer->offer.count = 0;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        if (exchange->exposed > 0 && !exchange->awaits_quiet) {
            exchange->awaits_quiet = true;
            tb_touch_begin(transfer);
            transfer->quiet_deadline = tb_deadline((uint64_t)session->options.quiesce_ms * 1000000);
            tb_net_timer(&session->net, exchange->gone ? tb_now() : transfer->quiet_deadline);
        }
    }
}

void tb_pulls_are_quiet(tb_exchange *exchange) {
    tb_touch_unexpose_all(exchange);
    if (exchange->awaits_quiet) {
        exchange->awaits_quiet = false;
        tb_round_release(exchange->transfer);
    }
}

void tb_pulls_on_quiet(tb_exchange *exchange, const tb_wire_header *header) {
    if (exchange->awaits_quiet && header->round == exchange->transfer->round) {
        tb_pulls_are_quiet(exchange);
    }
}

static void quarantine(tb_transfer *transfer) {
    tb_session *session = transfer->session;
    uint32_t given_up = 0;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        if (exchange->awaits_quiet) {
            exchange->awaits_quiet = false;
            exchange->gone = true;
            given_up++;
            tb_fail(&transfer->error, TB_EQUARANTINED, exchange->peer->rank, 0,
                    "rank %d may still read memory of round %llu, %u ms after it failed: %.200s",
                    exchange->peer->rank, (unsigned long long)transfer->round, session->options.quiesce_ms,
                    transfer->aborted.message);
        }
    }
    transfer->quarantined = true;
    session->quarantined = true;
    for (uint32_t i = 0; i < transfer->program.header->buffer_count; i++) {
        if (transfer->regions[i] != TB_NONE) {
            session->regions[transfer->regions[i]].quarantined = true;
        }
    }
    transfer->quiet_deadline = 0;
    tb_touch_end(transfer, given_up);
    tb_round_check(transfer);
}

uint64_t tb_pulls_look(tb_transfer *transfer, uint64_t now) {
    bool lost = false;
    for (uint32_t i = 0; i < transfer->exchange_count && transfer->quiet_deadline != 0; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        if (!exchange->awaits_quiet || !exchange->gone) {
            continue;
        }
        if (tb_identity_may_live(&transfer->session->identity, &exchange->identity)) {
            lost = true;
        } else {
            tb_pulls_are_quiet(exchange);
        }
    }
    if (transfer->quiet_deadline == 0) {
        return 0;
    }
    if (now >= transfer->quiet_deadline) {
        quarantine(transfer);
        return 0;
    }
    return lost && now + LOOK_NS < transfer->quiet_deadline ? now + LOOK_NS : transfer->quiet_deadline;
}

/* ---- the target ---------------------------------------------------------------------------------------- */

void tb_pulls_grant(tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->program.header->channel_count; i++) {
        const tb_channel *channel = &transfer->program.channels[i];
        if (channel->direction == TB_RECEIVE && channel->stage == 0 && tb_way_of(transfer, i) == TB_WAY_PULL) {
            transfer->channels[i].granted = channel->bucket_count;
            tb_round_announce(transfer, i);
        }
    }
}

void tb_pulls_came(tb_transfer *transfer, uint32_t bucket) {
    bool fold = tb_bucket_channel(&transfer->program, bucket)->stage == 0;
    if (fold && transfer->buckets[bucket] == TB_BUCKET_IDLE) {
        tb_bucket_become(transfer, bucket, TB_BUCKET_READY);
    } else if (fold && !tb_folds_turn(transfer, bucket)) {
        tb_bucket_become(transfer, bucket, TB_BUCKET_STAGED);
    } else {
        tb_bucket_become(transfer, bucket, TB_BUCKET_QUEUED);
        tb_round_offer(transfer, bucket);
    }
}

int32_t tb_pulls_on_ready(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    tb_transfer *transfer = exchange->transfer;
    uint32_t channel = header->stage < TB_STAGES ? exchange->receive[header->stage] : TB_NONE;
    if (channel == TB_NONE || header->round > transfer->round || tb_way_of(transfer, channel) != TB_WAY_PULL) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "buckets came that nobody asked for");
    }
    if (header->round < transfer->round || transfer->state != TB_TRANSFER_RUNNING || transfer->failing) {
        return TB_OK; /* it belongs to a round that failed here */
    }
    const tb_channel *row = &transfer->program.channels[channel];
    uint32_t granted = transfer->channels[channel].granted;
    if (header->sequence > granted || header->count > granted - header->sequence) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u was not granted", header->sequence,
                       header->stage);
    }
    uint32_t first = row->first_bucket + header->sequence;
    for (uint32_t b = first; b < first + header->count; b++) {
        bool comes = transfer->buckets[b] == TB_BUCKET_IDLE
                     || (row->stage == 0 && transfer->buckets[b] == TB_BUCKET_ALLOWED);
        if (!comes) {
            return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u came twice",
                           b - row->first_bucket, header->stage);
        }
        tb_pulls_came(transfer, b);
    }
    return TB_OK;
}

static void say_quiet(tb_exchange *exchange, uint64_t round) {
    tb_wire_header header = {.kind = TB_FRAME_QUIET, .transfer = exchange->remote, .round = round};
    tb_peer_say(exchange->peer, &header, NULL);
}

void tb_pulls_owe_quiet(tb_exchange *exchange, uint64_t round) {
    if (exchange->carrier->way != TB_WAY_PULL) {
        return;
    }
    /*
     * Only for the round under way is anything read. Of other rounds that a peer speaks of, this rank is quiet already.
     */
    if (round == exchange->transfer->round && exchange->pulling > 0) {
        exchange->owes_quiet = round;
    } else {
        say_quiet(exchange, round);
    }
}

void tb_pull_begin(tb_transfer *transfer, tb_exchange *exchange) {
    tb_touch_begin_pull(transfer, exchange);
}

void tb_pull_over(tb_transfer *transfer, tb_exchange *exchange) {
    bool rests = tb_touch_end_pull(transfer, exchange);
    if (exchange->pulling == 0 && exchange->owes_quiet != 0) {
        say_quiet(exchange, exchange->owes_quiet);
        exchange->owes_quiet = 0;
    }
    if (rests) {
        tb_session_rests(transfer->session);
    }
    tb_round_release(transfer);
}

static void say_read(tb_transfer *transfer, uint32_t bucket) {
    uint32_t index = transfer->program.buckets[bucket].channel;
    const tb_channel *channel = &transfer->program.channels[index];
    tb_exchange *exchange = transfer->channels[index].exchange;
    if (transfer->channels[index].done + 1 == channel->bucket_count) {
        return; /* TAKEN says it */
    }
    tb_wire_header header = {.kind = TB_FRAME_READ,
                             .stage = channel->stage,
                             .transfer = exchange->remote,
                             .round = transfer->round,
                             .sequence = tb_bucket_sequence(&transfer->program, bucket)};
    tb_peer_say(exchange->peer, &header, NULL);
}

void tb_pull_finish(tb_transfer *transfer, tb_exchange *exchange, uint32_t bucket) {
    if (!transfer->failing) {
        say_read(transfer, bucket);
        if (tb_bucket_channel(&transfer->program, bucket)->stage == 0) {
            tb_folds_done(transfer, bucket);
        } else {
            tb_round_bucket_done(transfer, bucket);
            tb_round_consumed(transfer, bucket);
        }
    }
    tb_pull_over(transfer, exchange);
}

void tb_pull_end(tb_pull *pull, int32_t code, int32_t rank, int os_errno, const char *message) {
    tb_transfer *transfer = pull->transfer;
    tb_session *session = transfer->session;
    pthread_mutex_lock(&session->lock);
    if (code != TB_OK) {
        tb_round_fail(transfer, code, rank, os_errno, message);
    } else if (!transfer->failing) {
        atomic_fetch_add_explicit(pull->exchange == NULL ? &transfer->bytes_copied : &transfer->bytes_received,
                                  pull->bytes, memory_order_relaxed);
    }
    if (pull->exchange != NULL) {
        tb_pull_finish(transfer, pull->exchange, pull->bucket);
    } else {
        tb_round_moved(transfer, pull->bucket);
    }
    pthread_mutex_unlock(&session->lock);
    free(pull);
}
