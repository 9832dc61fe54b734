/* What the ends of a transfer say to each other once they are paired. The session's lock is held in all of this. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/round.h"
#include "round/round_send.h"
#include "round/select.h"
#include "round/transfer_meet.h"
#include "round/transfer_peer.h"
#include "wire/peer.h"


void tb_transfer_say_failure(tb_exchange *exchange, uint8_t kind, uint64_t number, const tb_error *error) {
    if (exchange->gone || !exchange->told) {
        return;
    }
    uint8_t body[sizeof(tb_wire_failure) + TB_REASON_BYTES];
    uint32_t release = exchange->transfer->refused       ? TB_RELEASE_FOR_GOOD
                       : error->os_errno == ESTALE || exchange->transfer->moved ? TB_RELEASE_MOVED
                                                                       : TB_RELEASE_ONCE;
    /* The deadline that passed was ours; for the others, this rank gave up. */
    tb_wire_failure failure = {error->code == TB_ETIMEOUT ? TB_ECANCELLED : error->code, error->rank};
    size_t length = strnlen(error->message, TB_REASON_BYTES);
    memcpy(body, &failure, sizeof failure);
    memcpy(body + sizeof failure, error->message, length);
    tb_wire_header header = {.kind = kind,
                             .count = kind == TB_FRAME_RELEASE ? release : 0,
                             .transfer = exchange->remote,
                             .round = number,
                             .body_bytes = sizeof failure + length};
    tb_peer_say(exchange->peer, &header, body);
}

tb_exchange *tb_peer_exchange(tb_peer *peer, uint64_t transfer) {
    tb_exchange **at = &peer->exchanges;
    while (*at != NULL && ((*at)->gone || (*at)->transfer->handle != transfer)) {
        at = &(*at)->next;
    }
    tb_exchange *exchange = *at;
    if (exchange != NULL && exchange != peer->exchanges) {
        *at = exchange->next; /* to the front: the next frame is most likely of the same transfer */
        exchange->next = peer->exchanges;
        peer->exchanges = exchange;
    }
    return exchange;
}

static int32_t take_failure(const tb_wire_header *header, const uint8_t *body, tb_error *error,
                            tb_error *err) {
    tb_wire_failure failure;
    if (header->body_bytes < sizeof failure) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a failure came without its reason");
    }
    memcpy(&failure, body, sizeof failure);
    if (failure.code < 100 || failure.code > 999) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "it reported the unknown failure code %d", failure.code);
    }
    tb_fail(error, failure.code, failure.rank, 0, "%.*s", (int)(header->body_bytes - sizeof failure),
            (const char *)body + sizeof failure);
    return TB_OK;
}

/* The sender's transfer, whose number is in header->round, is no more: released, or its prepare failed. */
static int32_t on_release(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_error why;
    int32_t code = take_failure(header, body, &why, err);
    if (code != TB_OK) {
        return code;
    }
    tb_transfer_drop_early(peer, header->round);
    bool for_good = header->count == TB_RELEASE_FOR_GOOD;
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = exchange->next) {
        if (exchange->remote != header->round || exchange->gone) {
            continue;
        }
        if (exchange->transfer->state == TB_TRANSFER_PREPARING && !exchange->matched && !for_good) {
            tb_transfer_forget_attempt(exchange);
            return TB_OK;
        }
        exchange->gone = true;
        exchange->transfer->moved |= header->count == TB_RELEASE_MOVED;
        tb_pulls_are_quiet(exchange); /* it has nothing under way */
        if (exchange->transfer->state == TB_TRANSFER_PREPARING) {
            int moved = header->count == TB_RELEASE_MOVED ? ESTALE : 0;
            tb_transfer_fail_prepare(exchange->transfer, why.code, why.rank, moved, why.message);
        } else if (exchange->unfinished > 0) {
            tb_round_fail(exchange->transfer, why.code, why.rank, 0, why.message);
        }
        if (exchange->transfer->joint.own != NULL) {
            exchange->transfer->joint.carrier->peer_released(exchange, &why);
        }
        return TB_OK;
    }
    return TB_OK;
}


static int32_t on_grant(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    tb_transfer *transfer = exchange->transfer;
    uint32_t channel = header->stage < TB_STAGES ? exchange->send[header->stage] : TB_NONE;
    if (channel == TB_NONE || tb_way_of(transfer, channel) == TB_WAY_JOINT
        || header->count > transfer->program.channels[channel].bucket_count) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a grant names %u buckets, more than there are", header->count);
    }
    tb_channel_state *state = &transfer->channels[channel];
    bool current = transfer->state == TB_TRANSFER_RUNNING && header->round == transfer->round;
    if (header->round < transfer->round || header->round < state->granted_round
        || (header->round == transfer->round && !current)) {
        return TB_OK; /* it belongs to a round that is over */
    }
    uint32_t from = header->round == state->granted_round ? state->granted : 0;
    if (header->count < from) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a grant takes back an earlier one");
    }
    if (!current && transfer->state == TB_TRANSFER_RUNNING) {
        /* A peer that is ahead never began this round, unless it has no more to do with it. */
        if (!transfer->failing && !state->finished) {
            char message[96];
            snprintf(message, sizeof message, "rank %d went on to round %llu", exchange->peer->rank,
                     (unsigned long long)header->round);
            tb_round_fail(transfer, TB_ECANCELLED, exchange->peer->rank, 0, message);
        }
    }
    state->granted_round = header->round;
    state->granted = header->count;
    if (current && !transfer->failing) {
        tb_round_apply_grant(transfer, channel, from);
    }
    return TB_OK;
}

static int32_t on_taken(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    tb_transfer *transfer = exchange->transfer;
    uint32_t channel = header->stage < TB_STAGES ? exchange->send[header->stage] : TB_NONE;
    if (channel == TB_NONE) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt came for a bucket that does not exist");
    }
    if (header->round != transfer->round || transfer->state != TB_TRANSFER_RUNNING || transfer->failing) {
        return TB_OK;
    }
    tb_channel_state *state = &transfer->channels[channel];
    if (tb_way_of(transfer, channel) == TB_WAY_PULL) {
        tb_pulls_taken(exchange, channel);
    }
    /* Claimed, not retired: a receipt may overtake this rank's own look at what its last write took. */
    if (state->finished || state->done != transfer->program.channels[channel].bucket_count) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt came for something that was not sent");
    }
    state->finished = true;
    exchange->unfinished--;
    transfer->sends_left--;
    tb_round_check(transfer);
    return TB_OK;
}

/*
 * A peer that is ahead of this rank never began what is unfinished between the two. What moves jointly may be done
 * before.
 */
static void on_here(tb_exchange *exchange, const tb_wire_header *header) {
    tb_transfer *transfer = exchange->transfer;
    exchange->here = header->round > exchange->here ? header->round : exchange->here;
    if (transfer->state != TB_TRANSFER_RUNNING || transfer->failing || header->round < transfer->round) {
        return;
    }
    if (header->round > transfer->round) {
        if (exchange->unfinished > 0 && !exchange->jointly) {
            char message[96];
            snprintf(message, sizeof message, "rank %d went on to round %llu", exchange->peer->rank,
                     (unsigned long long)header->round);
            tb_round_fail(transfer, TB_ECANCELLED, exchange->peer->rank, 0, message);
        }
        return;
    }
    if (exchange->awaited) {
        exchange->awaited = false;
        exchange->unfinished--;
        transfer->links_left--;
        tb_round_check(transfer);
    }
}

/* Another waited too long for this rank, and this one for a rank that has not begun: that is where it began. */
static void pass_blame_on(const tb_transfer *transfer, const tb_error *why, tb_error *passed) {
    int32_t own = transfer->session->options.rank;
    const tb_exchange *absent = tb_transfer_absent(transfer);
    if (why->code != TB_ECANCELLED || why->rank != own || absent == NULL) {
        *passed = *why;
        return;
    }
    tb_fail(passed, why->code, absent->peer->rank, 0, "%s; and rank %d waited for rank %d, which has not begun it",
            why->message, own, absent->peer->rank);
}

/* This rank named one that was late, and that one names another while the round is not quiet yet: so does this one. */
static void take_blame_over(tb_transfer *transfer, int32_t peer, const tb_error *why) {
    tb_error *error = &transfer->error;
    bool named = error->rank == peer && (error->code == TB_ETIMEOUT || error->code == TB_ECANCELLED);
    int32_t own = transfer->session->options.rank;
    if (!named || why->code != TB_ECANCELLED || why->rank == peer || why->rank == own) {
        return;
    }
    tb_fail(error, error->code, why->rank, 0, "%s", why->message);
    transfer->aborted = *error;
}

/*
 * A failure goes on to all peers of the transfer, once for each round, also from a rank that is done with the
 * round or has not begun it: there may be ranks that are unfinished and know its origin only by way of this
 * one.
 */
static void spread_abort(tb_transfer *transfer, uint64_t round, const tb_error *why) {
    if (round == transfer->round && transfer->state == TB_TRANSFER_RUNNING) {
        tb_error passed;
        pass_blame_on(transfer, why, &passed);
        tb_round_fail(transfer, passed.code, passed.rank, 0, passed.message);
        return;
    }
    if (!tb_aborts_add(&transfer->aborts, round, why->code, why->rank)) {
        return;
    }
    transfer->aborted = *why;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_transfer_say_failure(&transfer->exchanges[i], TB_FRAME_ABORT, round, why);
    }
}

static int32_t on_abort(tb_exchange *exchange, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_transfer *transfer = exchange->transfer;
    tb_error why;
    int32_t code = take_failure(header, body, &why, err);
    if (code == TB_OK) {
        if (transfer->state == TB_TRANSFER_RUNNING && transfer->failing && header->round == transfer->round) {
            take_blame_over(transfer, exchange->peer->rank, &why);
        }
        spread_abort(transfer, header->round, &why);
        tb_pulls_owe_quiet(exchange, header->round);
        if (transfer->joint.own != NULL && tb_aborts_find(&transfer->aborts, header->round) != NULL) {
            transfer->joint.carrier->peer_aborted(exchange, header->round, why.code);
        }
    }
    return code;
}

int32_t tb_transfer_on_frame(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    if (header->kind == TB_FRAME_PREPARE) {
        return tb_transfer_on_prepare(peer, header, body, err);
    }
    if (header->kind == TB_FRAME_RELEASE) {
        return on_release(peer, header, body, err);
    }
    tb_exchange *exchange = tb_peer_exchange(peer, header->transfer);
    if (exchange == NULL) {
        return TB_OK; /* it belongs to a transfer that was released here */
    }
    switch (header->kind) {
    case TB_FRAME_MATCH:
        return tb_transfer_on_match(exchange, header, err);
    case TB_FRAME_EXPORT:
        return tb_transfer_on_export(exchange, header, body, err);
    case TB_FRAME_READY:
        return tb_pulls_on_ready(exchange, header, err);
    case TB_FRAME_READ:
        return tb_pulls_on_read(exchange, header, err);
    case TB_FRAME_QUIET:
        tb_pulls_on_quiet(exchange, header);
        return TB_OK;
    case TB_FRAME_CARRIER:
    case TB_FRAME_CARRIER + 1:
    case TB_FRAME_CARRIER_LAST:
        return exchange->transfer->joint.own == NULL ? TB_OK
                                                     : exchange->transfer->joint.carrier->frame(exchange, header, err);
    case TB_FRAME_HERE:
        on_here(exchange, header);
        return TB_OK;
    case TB_FRAME_GRANT:
        return on_grant(exchange, header, err);
    case TB_FRAME_TAKEN:
        return on_taken(exchange, header, err);
    default:
        return on_abort(exchange, header, body, err);
    }
}
