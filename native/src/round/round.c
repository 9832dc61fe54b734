/* A round, from its start to its end. The session's lock is held in all of this. */
#include "round/round.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/round_fold.h"
#include "round/round_receive.h"
#include "round/round_send.h"
#include "round/transfer_peer.h"
#include "wire/peer.h"
#include "round/invariants.h"

static void reset_channels(tb_transfer *transfer) {
    const tb_program_header *header = transfer->program.header;
    for (uint32_t i = 0; i < header->channel_count; i++) {
        tb_channel_state *state = &transfer->channels[i];
        /* A target that began before this rank, or is even ahead of it, has granted already. */
        bool granted =
            transfer->program.channels[i].direction == TB_SEND && state->granted_round >= transfer->round;
        state->granted = granted ? state->granted : 0;
        state->in_flight = 0;
        state->done = 0;
        state->finished = false;
        state->announce = false;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        exchange->ready.count = 0;
        exchange->unfinished = 0;
        tb_touch_unexpose_all(exchange);
        for (int stage = 0; stage < TB_STAGES; stage++) {
            exchange->unfinished += (exchange->send[stage] != TB_NONE) + (exchange->receive[stage] != TB_NONE);
        }
        exchange->awaited = exchange->linked && exchange->here < transfer->round;
        exchange->unfinished += exchange->awaited;
        transfer->links_left += exchange->awaited;
    }
}

static void reset(tb_transfer *transfer) {
    const tb_program *program = &transfer->program;
    transfer->links_left = 0;
    reset_channels(transfer);
    memset(transfer->buckets, TB_BUCKET_IDLE, program->header->bucket_count);
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        transfer->waits[b] = program->buckets[b].dependency_count;
    }
    transfer->jobs.count = 0;
    transfer->offer.count = 0;
    transfer->receives_left = program->receive_channels;
    transfer->sends_left = program->send_channels;
    transfer->locals_left = program->local_buckets;
    memset(transfer->turns, 0, sizeof transfer->turns);
    tb_folds_reset(transfer);
    transfer->staging.high = 0;
    atomic_store(&transfer->bytes_sent, 0);
    atomic_store(&transfer->bytes_received, 0);
    atomic_store(&transfer->bytes_copied, 0);
}

/* A round that cannot succeed any more when it begins. True if it failed. */
static bool fail_at_once(tb_transfer *transfer) {
    const tb_abort *why = tb_aborts_find(&transfer->aborts, transfer->round);
    if (why != NULL) {
        char message[96];
        snprintf(message, sizeof message, "round %llu had failed on rank %d before it began here",
                 (unsigned long long)transfer->round, why->rank);
        tb_round_fail(transfer, why->code, why->rank, ESTALE, message);
        return true;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].gone) {
            char message[64];
            int32_t rank = transfer->exchanges[i].peer->rank;
            snprintf(message, sizeof message, "rank %d went away after it was prepared", rank);
            tb_round_fail(transfer, TB_EPEER_LOST, rank, 0, message);
            return true;
        }
    }
    return false;
}

void tb_round_start(tb_transfer *transfer, uint64_t round, uint64_t deadline) {
    tb_transfer_become(transfer, TB_TRANSFER_RUNNING);
    transfer->round = round;
    transfer->deadline = deadline;
    transfer->started = tb_now();
    transfer->failing = false;
    tb_aborts_move(&transfer->aborts, round);
    atomic_store(&transfer->stop, false);
    reset(transfer);
    tb_net_timer(&transfer->session->net, deadline);
    if (fail_at_once(transfer)) {
        return;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_wire_header here = {.kind = TB_FRAME_HERE, .transfer = transfer->exchanges[i].remote, .round = round};
        tb_peer_say(transfer->exchanges[i].peer, &here, NULL);
    }
    if (transfer->joint.carrier != NULL) {
        transfer->joint.carrier->round_begin(transfer);
    }
    if (transfer->failing || transfer->joint.alone) {
        return;
    }
    const tb_program *program = &transfer->program;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_channel *channel = tb_bucket_channel(program, b);
        bool starts = channel->direction == TB_SEND || (channel->direction == TB_LOCAL && channel->stage > 0);
        if (starts && transfer->waits[b] == 0) {
            tb_round_ready(transfer, b);
        }
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].ready.count > 0) {
            tb_peer_kick(transfer->exchanges[i].peer);
        }
    }
    tb_pulls_say(transfer);
    tb_pulls_grant(transfer);
    tb_folds_allow(transfer);
    tb_round_grant_pooled(transfer);
    tb_round_grant_turns(transfer, 1);
    tb_round_grant_turns(transfer, 2);
    tb_round_check(transfer);
}

static void finish(tb_transfer *transfer) {
    tb_event event = {
        .kind = TB_EVENT_ROUND,
        .transfer = transfer->handle,
        .round = transfer->round,
        .bytes_sent = atomic_load(&transfer->bytes_sent),
        .bytes_received = atomic_load(&transfer->bytes_received),
        .bytes_copied = atomic_load(&transfer->bytes_copied),
        .nanoseconds = tb_now() - transfer->started,
        .staging_high_water = transfer->staging.high,
    };
    if (transfer->failing) {
        event.error = transfer->error;
    }
    tb_transfer_become(transfer, TB_TRANSFER_READY);
    transfer->deadline = 0;
    transfer->quiet_deadline = 0;
    tb_net_event_reserved(&transfer->session->net, &event, &transfer->reserved);
}

void tb_round_check(tb_transfer *transfer) {
    if (transfer->state != TB_TRANSFER_RUNNING || transfer->active > 0) {
        return;
    }
    bool done = transfer->receives_left == 0 && transfer->sends_left == 0 && transfer->locals_left == 0
             && transfer->links_left == 0;
    if (transfer->failing || done) {
        finish(transfer);
    }
}

void tb_round_release(tb_transfer *transfer) {
    tb_touch_end(transfer, 1);
    tb_round_check(transfer);
}

void tb_round_fail(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message) {
    if (transfer->state != TB_TRANSFER_RUNNING || transfer->failing) {
        return;
    }
    transfer->failing = true;
    atomic_store(&transfer->stop, true);
    tb_fail(&transfer->error, code, rank, os_errno, "%s", message);
    tb_aborts_add(&transfer->aborts, transfer->round, code, rank);
    transfer->aborted = transfer->error;
    transfer->jobs.count = 0;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        transfer->exchanges[i].ready.count = 0;
        tb_transfer_say_failure(&transfer->exchanges[i], TB_FRAME_ABORT, transfer->round, &transfer->error);
    }
    tb_touch_goes_stale(transfer);
    tb_pulls_await_quiet(transfer);
    if (transfer->joint.own != NULL) {
        transfer->joint.carrier->round_failed(transfer);
    }
    tb_threads_sweep(transfer->session);
    tb_round_check(transfer);
}

void tb_round_bucket_done(tb_transfer *transfer, uint32_t bucket) {
    const tb_program *program = &transfer->program;
    tb_bucket_become(transfer, bucket, TB_BUCKET_DONE);
    for (uint32_t d = program->first_dependent[bucket]; d < program->first_dependent[bucket + 1]; d++) {
        uint32_t dependent = program->dependents[d];
        TB_INVARIANT(transfer->waits[dependent] > 0);
        if (--transfer->waits[dependent] == 0) {
            tb_round_ready(transfer, dependent);
            if (tb_bucket_channel(program, dependent)->direction == TB_SEND) {
                tb_peer_kick(transfer->channels[program->buckets[dependent].channel].exchange->peer);
            }
        }
    }
    tb_pulls_say(transfer);
}

void tb_round_offer(tb_transfer *transfer, uint32_t bucket) {
    tb_heap_push(&transfer->jobs, bucket);
    tb_threads_offer_job(transfer->session);
}
