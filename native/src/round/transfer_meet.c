/* How the ends of a transfer find each other at prepare. The session's lock is held in all of this. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/export.h"
#include "round/select.h"
#include "round/transfer_meet.h"
#include "round/transfer_peer.h"
#include "wire/peer.h"
#include "round/invariants.h"

/* ---- saying -------------------------------------------------------------------------------------------- */

/* The identity of this session, with the kinds of memory that the transfer has to do with. */
static tb_wire_identity identity_of(const tb_transfer *transfer) {
    tb_wire_identity identity = transfer->session->identity;
    for (uint32_t i = 0; i < transfer->program.header->buffer_count; i++) {
        if (transfer->regions[i] != TB_NONE) {
            identity.memory |= transfer->session->regions[transfer->regions[i]].memory;
        }
    }
    return identity;
}

void tb_transfer_say_prepare(tb_exchange *exchange) {
    tb_transfer *transfer = exchange->transfer;
    const tb_program *program = &transfer->program;
    uint8_t body[sizeof(tb_wire_prepare) + 2 * TB_STAGES * sizeof(tb_wire_channel) + TB_KEY_BYTES];
    uint64_t at = sizeof(tb_wire_prepare);
    tb_wire_prepare prepare = {
        .transfer = transfer->handle,
        .flags = transfer->flags,
        .key_bytes = (uint32_t)strlen(transfer->key),
        .has_pool = program->header->piece_count > 0,
        .joined = transfer->joined,
        .identity = identity_of(transfer),
    };
    tb_peer *peer = exchange->peer;
    if (!peer->has_nonce) {
        peer->has_nonce = getrandom(peer->nonce, sizeof peer->nonce, 0) == sizeof peer->nonce;
    }
    memcpy(prepare.identity.nonce, peer->nonce, sizeof peer->nonce);
    memcpy(prepare.digest, program->header->digest, sizeof prepare.digest);
    for (int i = 0; i < 2 * TB_STAGES; i++) {
        uint32_t index = i < TB_STAGES ? exchange->send[i] : exchange->receive[i - TB_STAGES];
        if (index == TB_NONE) {
            continue;
        }
        const tb_channel *channel = &program->channels[index];
        tb_wire_channel row = {channel->stage, i < TB_STAGES,       channel->bucket_count, 0,
                               channel->bytes, channel->fingerprint};
        memcpy(body + at, &row, sizeof row);
        at += sizeof row;
        prepare.channels++;
    }
    memcpy(body, &prepare, sizeof prepare);
    memcpy(body + at, transfer->key, prepare.key_bytes);
    at += prepare.key_bytes;
    exchange->told = true;
    tb_peer_say(exchange->peer, &(tb_wire_header){.kind = TB_FRAME_PREPARE, .body_bytes = at}, body);
}

void tb_transfer_say_match(tb_exchange *exchange) {
    tb_wire_header header = {.kind = TB_FRAME_MATCH,
                             .count = exchange->carrier->number,
                             .transfer = exchange->remote,
                             .round = exchange->transfer->handle};
    exchange->said_match = true;
    tb_peer_say(exchange->peer, &header, NULL);
    tb_transfer_check_prepared(exchange->transfer);
}
/* ---- prepare ------------------------------------------------------------------------------------------- */

void tb_transfer_let_regions_go(tb_transfer *transfer) {
    if (!transfer->holds_regions || transfer->quarantined) {
        return;
    }
    transfer->holds_regions = false;
    for (uint32_t i = 0; i < transfer->program.header->buffer_count; i++) {
        if (transfer->regions[i] != TB_NONE) {
            TB_INVARIANT(transfer->session->regions[transfer->regions[i]].uses > 0);
            transfer->session->regions[transfer->regions[i]].uses--;
        }
    }
}

void tb_transfer_leave_peers(tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        for (tb_exchange **at = &exchange->peer->exchanges; *at != NULL; at = &(*at)->next) {
            if (*at == exchange) {
                *at = exchange->next;
                break;
            }
        }
    }
}

static void end_prepare(tb_transfer *transfer, enum tb_transfer_state state, const tb_error *error) {
    tb_event event = {.kind = TB_EVENT_PREPARED, .transfer = transfer->handle};
    if (error != NULL) {
        event.error = *error;
    }
    tb_transfer_become(transfer, state);
    transfer->deadline = 0;
    tb_net_event_reserved(&transfer->session->net, &event, &transfer->reserved);
}

void tb_transfer_fail_prepare(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message) {
    tb_error error;
    tb_fail(&error, code, rank, os_errno, "%s", message);
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_transfer_say_failure(&transfer->exchanges[i], TB_FRAME_RELEASE, transfer->handle, &error);
        if (transfer->exchanges[i].import != NULL) {
            tb_import_drop(transfer->exchanges[i].import);
        }
    }
    tb_transfer_leave_peers(transfer);
    tb_transfer_let_regions_go(transfer);
    transfer->error = error;
    tb_transfer_become(transfer, TB_TRANSFER_ENDING);
    tb_transfer_end_late(transfer);
}

void tb_transfer_end_late(tb_transfer *transfer) {
    if (transfer->state == TB_TRANSFER_ENDING && transfer->active == 0) {
        end_prepare(transfer, TB_TRANSFER_DEAD, &transfer->error);
    }
}

void tb_transfer_refuse(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message) {
    transfer->refused = true;
    tb_transfer_fail_prepare(transfer, code, rank, os_errno, message);
}

void tb_transfer_check_prepared(tb_transfer *transfer) {
    /*
     * A thread may still open what an earlier attempt of a peer exported: tb_import_serve looks again when it is done.
     */
    if (transfer->state != TB_TRANSFER_PREPARING || transfer->active > 0) {
        return;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        if (exchange->remote == 0 || !exchange->matched || !exchange->said_match) {
            return;
        }
    }
    end_prepare(transfer, TB_TRANSFER_READY, NULL);
}

static bool same_channels(const tb_exchange *exchange, const tb_wire_prepare *prepare, const tb_wire_channel *rows) {
    uint32_t ours = 0;
    for (int stage = 0; stage < TB_STAGES; stage++) {
        ours += (exchange->send[stage] != TB_NONE) + (exchange->receive[stage] != TB_NONE);
    }
    if (ours != prepare->channels) {
        return false;
    }
    for (uint32_t i = 0; i < prepare->channels; i++) {
        const tb_wire_channel *row = &rows[i];
        uint32_t index = row->stage >= TB_STAGES ? TB_NONE
                         : row->sends            ? exchange->receive[row->stage]
                                                 : exchange->send[row->stage];
        const tb_channel *channel = index == TB_NONE ? NULL : &exchange->transfer->program.channels[index];
        if (channel == NULL || channel->bucket_count != row->buckets || channel->bytes != row->bytes
            || channel->fingerprint != row->fingerprint) {
            return false;
        }
    }
    return true;
}

static bool sends(const tb_exchange *exchange) {
    return exchange->send[0] != TB_NONE || exchange->send[1] != TB_NONE || exchange->send[2] != TB_NONE;
}

static bool receives(const tb_exchange *exchange) {
    return exchange->receive[0] != TB_NONE || exchange->receive[1] != TB_NONE || exchange->receive[2] != TB_NONE;
}

static bool exchanges(const tb_exchange *exchange) {
    return sends(exchange) || receives(exchange);
}

/* What was known of the peer before is not so any more, at one of the two: to be asked for and prepared again. */
static void say_moved(tb_exchange *exchange) {
    char message[128];
    snprintf(message, sizeof message, "rank %d is not where this rank was told, or was told of other places itself",
             exchange->peer->rank);
    tb_transfer_fail_prepare(exchange->transfer, TB_EINVALIDATED, exchange->peer->rank, ESTALE, message);
}

/*
 * The two agree on it without a word. The rank that is to be read from exports; the one that reads says MATCH once it
 * can.
 */
static void choose_carrier(tb_exchange *exchange) {
    tb_transfer *transfer = exchange->transfer;
    tb_error error;
    const tb_carrier *carrier = NULL;
    bool moved =
        (exchange->joins || exchange->jointly) && transfer->joined != 0 && exchange->joined != transfer->joined;
    if (!exchanges(exchange)) {
        moved ? say_moved(exchange) : tb_transfer_say_match(exchange);
        return;
    }
    tb_wire_identity own = identity_of(transfer);
    bool lower = transfer->session->options.rank < exchange->peer->rank;
    int32_t code = tb_carrier_select(transfer->session->carriers, lower ? &own : &exchange->identity,
                                     lower ? &exchange->identity : &own, transfer->flags, &carrier, &error);
    if (code == TB_OK && (moved || (carrier->way == TB_WAY_JOINT) != exchange->jointly)) {
        say_moved(exchange);
        return;
    }
    if (code == TB_OK) {
        exchange->carrier = carrier;
        bool pulled = carrier->way == TB_WAY_PULL;
        if (pulled && sends(exchange)) {
            code = tb_export_say(exchange, &error);
        }
        if (code == TB_OK && pulled && receives(exchange) && (exchange->import = tb_import_create(exchange)) == NULL) {
            code = tb_fail(&error, TB_ENO_MEMORY, -1, 0, "no memory for an import");
        }
    }
    if (code != TB_OK) {
        tb_transfer_refuse(transfer, code, exchange->peer->rank, error.os_errno, error.message);
    } else if (exchange->import == NULL) {
        tb_transfer_say_match(exchange);
    }
}

/*
 * The peer's PREPARE of this transfer is here. It may be one that the peer has given up meanwhile, and prepared
 * anew: both are prepared only once each knows that the other has paired the same two.
 */
static void meet(tb_exchange *exchange, const tb_wire_prepare *prepare, const tb_wire_channel *rows) {
    tb_transfer *transfer = exchange->transfer;
    const char *differs = NULL;
    if (memcmp(prepare->digest, transfer->program.header->digest, sizeof prepare->digest) != 0) {
        differs = "another plan";
    } else if (prepare->flags != transfer->flags) {
        differs = "it with another choice of checksums";
    } else if (!same_channels(exchange, prepare, rows)) {
        differs = "other buckets of the same plan";
    }
    if (differs != NULL) {
        char message[128];
        snprintf(message, sizeof message, "rank %d prepared %s", exchange->peer->rank, differs);
        tb_transfer_fail_prepare(transfer, TB_EPLAN_MISMATCH, exchange->peer->rank, 0, message);
        return;
    }
    exchange->remote = prepare->transfer;
    exchange->pooled = prepare->has_pool != 0;
    exchange->identity = prepare->identity;
    exchange->joined = prepare->joined;
    choose_carrier(exchange);
}

void tb_transfer_meet_early(tb_exchange *exchange) {
    for (tb_early **at = &exchange->peer->early; *at != NULL; at = &(*at)->next) {
        tb_early *early = *at;
        if (strcmp(early->key, exchange->transfer->key) == 0) {
            *at = early->next;
            exchange->peer->early_count--;
            meet(exchange, &early->prepare, early->channels);
            free(early);
            return;
        }
    }
}

static int32_t keep_early(tb_peer *peer, const tb_early *what, tb_error *err) {
    if (peer->early_count >= TB_EARLY) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0,
                       "it prepared more than %d transfers that this rank has not prepared yet", TB_EARLY);
    }
    tb_early *early = malloc(sizeof *early);
    if (early == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a prepare that came early");
    }
    *early = *what;
    tb_early **end = &peer->early;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    early->next = NULL;
    *end = early;
    peer->early_count++;
    return TB_OK;
}

int32_t tb_transfer_on_prepare(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_early early = {0};
    uint64_t rows = 0;
    bool fits = header->body_bytes >= sizeof early.prepare;
    if (fits) {
        memcpy(&early.prepare, body, sizeof early.prepare);
        rows = early.prepare.channels * sizeof(tb_wire_channel);
        fits = early.prepare.channels <= 2 * TB_STAGES && early.prepare.key_bytes <= TB_KEY_BYTES
               && early.prepare.transfer != 0
               && header->body_bytes == sizeof early.prepare + rows + early.prepare.key_bytes;
    }
    if (!fits) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a malformed PREPARE");
    }
    memcpy(early.channels, body + sizeof early.prepare, rows);
    memcpy(early.key, body + sizeof early.prepare + rows, early.prepare.key_bytes);
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = exchange->next) {
        bool waits = exchange->transfer->state == TB_TRANSFER_PREPARING && exchange->told && exchange->remote == 0;
        if (waits && strcmp(exchange->transfer->key, early.key) == 0) {
            meet(exchange, &early.prepare, early.channels);
            return TB_OK;
        }
    }
    return keep_early(peer, &early, err);
}

void tb_transfer_drop_early(tb_peer *peer, uint64_t remote) {
    for (tb_early **at = &peer->early; *at != NULL; at = &(*at)->next) {
        if ((*at)->prepare.transfer == remote) {
            tb_early *early = *at;
            *at = early->next;
            peer->early_count--;
            free(early);
            return;
        }
    }
}

/* It was an earlier attempt of the peer's; this side waits for its next. */
void tb_transfer_forget_attempt(tb_exchange *exchange) {
    exchange->remote = 0;
    exchange->said_match = false;
    exchange->carrier = tb_carrier_by_way(exchange->transfer->session, TB_WAY_STREAM);
    if (exchange->import != NULL) {
        tb_import_drop(exchange->import);
    }
}

/* It may have found that its carrier does not reach us: then it is the stream for both. */
int32_t tb_transfer_on_match(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    if (exchange->transfer->state != TB_TRANSFER_PREPARING || exchange->remote != header->round || exchange->matched) {
        return TB_OK;
    }
    const tb_session *session = exchange->transfer->session;
    const tb_carrier *stream = tb_carrier_by_way(session, TB_WAY_STREAM);
    bool streams = ((exchange->identity.carriers & session->identity.carriers) >> stream->number & 1) != 0;
    bool fits = header->count == exchange->carrier->number || exchange->carrier == stream
                || (header->count == stream->number && streams);
    if (!fits) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "another carrier, %u", header->count);
    }
    exchange->matched = true;
    if (header->count == stream->number && exchange->carrier != stream) {
        exchange->carrier = stream;
        if (exchange->import != NULL) {
            tb_import_drop(exchange->import);
        }
        if (!exchange->said_match) {
            tb_transfer_say_match(exchange);
        }
    }
    tb_transfer_check_prepared(exchange->transfer);
    return TB_OK;
}

int32_t tb_transfer_on_export(tb_exchange *exchange, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    if (exchange->transfer->state != TB_TRANSFER_PREPARING || exchange->remote != header->round
        || exchange->import == NULL) {
        return TB_OK; /* it belongs to an attempt that was given up, or is of no use any more */
    }
    return tb_import_take(exchange->import, body, header->body_bytes, err);
}
