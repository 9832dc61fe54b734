/* What the ends of a graph say to each other. The session's lock is held in all of this. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conn.h"
#include "error.h"
#include "round.h"

/* ---- saying -------------------------------------------------------------------------------------------- */

void tb_graph_say_prepare(tb_side *side) {
    tb_graph *graph = side->graph;
    const tb_program *program = &graph->program;
    uint8_t body[sizeof(tb_wire_prepare) + 2 * TB_STAGES * sizeof(tb_wire_channel) + TB_KEY_BYTES];
    uint64_t at = sizeof(tb_wire_prepare);
    tb_wire_prepare prepare = {
        .graph = graph->handle,
        .flags = graph->flags,
        .key_bytes = (uint32_t)strlen(graph->key),
        .has_pool = program->header->piece_count > 0,
    };
    memcpy(prepare.digest, program->header->digest, sizeof prepare.digest);
    for (int i = 0; i < 2 * TB_STAGES; i++) {
        uint32_t index = i < TB_STAGES ? side->send[i] : side->receive[i - TB_STAGES];
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
    memcpy(body + at, graph->key, prepare.key_bytes);
    at += prepare.key_bytes;
    side->told = true;
    tb_peer_say(side->peer, &(tb_wire_header){.kind = TB_FRAME_PREPARE, .body_bytes = at}, body);
}

void tb_graph_say_failure(tb_side *side, uint8_t kind, uint64_t number, const tb_error *error) {
    if (side->gone || !side->told) {
        return;
    }
    uint8_t body[sizeof(tb_wire_failure) + TB_REASON_BYTES];
    /* The deadline that passed was ours; for the others, this rank gave up. */
    tb_wire_failure failure = {error->code == TB_ETIMEOUT ? TB_ECANCELLED : error->code, error->rank};
    size_t length = strnlen(error->message, TB_REASON_BYTES);
    memcpy(body, &failure, sizeof failure);
    memcpy(body + sizeof failure, error->message, length);
    tb_wire_header header = {.kind = kind,
                             .graph = side->remote,
                             .round = number,
                             .body_bytes = sizeof failure + length};
    tb_peer_say(side->peer, &header, body);
}

/* ---- prepare ------------------------------------------------------------------------------------------- */

void tb_graph_let_regions_go(tb_graph *graph) {
    if (!graph->holds_regions) {
        return;
    }
    graph->holds_regions = false;
    for (uint32_t i = 0; i < graph->program.header->buffer_count; i++) {
        if (graph->regions[i] != TB_NONE) {
            graph->session->regions[graph->regions[i]].uses--;
        }
    }
}

void tb_graph_leave_peers(tb_graph *graph) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_side *side = &graph->sides[i];
        for (tb_side **at = &side->peer->sides; *at != NULL; at = &(*at)->next) {
            if (*at == side) {
                *at = side->next;
                break;
            }
        }
    }
}

static void end_prepare(tb_graph *graph, enum tb_graph_state state, const tb_error *error) {
    tb_event event = {.kind = TB_EVENT_PREPARED, .graph = graph->handle};
    if (error != NULL) {
        event.error = *error;
    }
    graph->state = state;
    graph->deadline = 0;
    tb_session_event_reserved(graph->session, &event, &graph->reserved);
}

void tb_graph_fail_prepare(tb_graph *graph, int32_t code, int32_t rank, int os_errno, const char *message) {
    tb_error error;
    tb_fail(&error, code, rank, os_errno, "%s", message);
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_graph_say_failure(&graph->sides[i], TB_FRAME_RELEASE, graph->handle, &error);
    }
    tb_graph_leave_peers(graph);
    tb_graph_let_regions_go(graph);
    end_prepare(graph, TB_GRAPH_DEAD, &error);
}

void tb_graph_check_prepared(tb_graph *graph) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].remote == 0 || !graph->sides[i].matched) {
            return;
        }
    }
    end_prepare(graph, TB_GRAPH_READY, NULL);
}

static bool same_channels(const tb_side *side, const tb_wire_prepare *prepare, const tb_wire_channel *rows) {
    uint32_t ours = 0;
    for (int stage = 0; stage < TB_STAGES; stage++) {
        ours += (side->send[stage] != TB_NONE) + (side->receive[stage] != TB_NONE);
    }
    if (ours != prepare->channels) {
        return false;
    }
    for (uint32_t i = 0; i < prepare->channels; i++) {
        const tb_wire_channel *row = &rows[i];
        uint32_t index = row->stage >= TB_STAGES ? TB_NONE
                         : row->sends            ? side->receive[row->stage]
                                                 : side->send[row->stage];
        const tb_channel *channel = index == TB_NONE ? NULL : &side->graph->program.channels[index];
        if (channel == NULL || channel->bucket_count != row->buckets || channel->bytes != row->bytes
            || channel->fingerprint != row->fingerprint) {
            return false;
        }
    }
    return true;
}

/*
 * The peer's PREPARE of this graph is here. It may be one that the peer has given up meanwhile, and prepared
 * anew: both are prepared only once each knows that the other has paired the same two.
 */
static void meet(tb_side *side, const tb_wire_prepare *prepare, const tb_wire_channel *rows) {
    tb_graph *graph = side->graph;
    const char *differs = NULL;
    if (memcmp(prepare->digest, graph->program.header->digest, sizeof prepare->digest) != 0) {
        differs = "another plan";
    } else if (prepare->flags != graph->flags) {
        differs = "another choice of checksums";
    } else if (!same_channels(side, prepare, rows)) {
        differs = "other buckets of the same plan";
    }
    if (differs != NULL) {
        char message[128];
        snprintf(message, sizeof message, "rank %d prepared %s", side->peer->rank, differs);
        tb_graph_fail_prepare(graph, TB_EPLAN_MISMATCH, side->peer->rank, 0, message);
        return;
    }
    side->remote = prepare->graph;
    side->pooled = prepare->has_pool != 0;
    tb_peer_say(side->peer,
                &(tb_wire_header){.kind = TB_FRAME_MATCH, .graph = side->remote, .round = graph->handle},
                NULL);
}

void tb_graph_meet_early(tb_side *side) {
    for (tb_early **at = &side->peer->early; *at != NULL; at = &(*at)->next) {
        tb_early *early = *at;
        if (strcmp(early->key, side->graph->key) == 0) {
            *at = early->next;
            side->peer->early_count--;
            meet(side, &early->prepare, early->channels);
            free(early);
            return;
        }
    }
}

static int32_t keep_early(tb_peer *peer, const tb_early *what, tb_error *err) {
    tb_early *early = peer->early_count < TB_EARLY ? malloc(sizeof *early) : NULL;
    if (early == NULL) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "more than %d graphs prepared ahead", TB_EARLY);
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

static int32_t on_prepare(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_early early = {0};
    uint64_t rows = 0;
    bool fits = header->body_bytes >= sizeof early.prepare;
    if (fits) {
        memcpy(&early.prepare, body, sizeof early.prepare);
        rows = early.prepare.channels * sizeof(tb_wire_channel);
        fits = early.prepare.channels <= 2 * TB_STAGES && early.prepare.key_bytes <= TB_KEY_BYTES
               && early.prepare.graph != 0
               && header->body_bytes == sizeof early.prepare + rows + early.prepare.key_bytes;
    }
    if (!fits) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a malformed PREPARE");
    }
    memcpy(early.channels, body + sizeof early.prepare, rows);
    memcpy(early.key, body + sizeof early.prepare + rows, early.prepare.key_bytes);
    for (tb_side *side = peer->sides; side != NULL; side = side->next) {
        bool waits = side->graph->state == TB_GRAPH_PREPARING && side->told && side->remote == 0;
        if (waits && strcmp(side->graph->key, early.key) == 0) {
            meet(side, &early.prepare, early.channels);
            return TB_OK;
        }
    }
    return keep_early(peer, &early, err);
}

/* ---- the other frames ---------------------------------------------------------------------------------- */

tb_side *tb_peer_side(tb_peer *peer, uint64_t graph) {
    tb_side **at = &peer->sides;
    while (*at != NULL && ((*at)->gone || (*at)->graph->handle != graph)) {
        at = &(*at)->next;
    }
    tb_side *side = *at;
    if (side != NULL && side != peer->sides) {
        *at = side->next; /* to the front: the next frame is most likely of the same graph */
        side->next = peer->sides;
        peer->sides = side;
    }
    return side;
}

static int32_t take_failure(const tb_wire_header *header, const uint8_t *body, tb_error *error,
                            tb_error *err) {
    tb_wire_failure failure;
    if (header->body_bytes < sizeof failure) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a failure without its reason");
    }
    memcpy(&failure, body, sizeof failure);
    if (failure.code < 100 || failure.code > 999) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a failure of code %d", failure.code);
    }
    tb_fail(error, failure.code, failure.rank, 0, "%.*s", (int)(header->body_bytes - sizeof failure),
            (const char *)body + sizeof failure);
    return TB_OK;
}

static void drop_early(tb_peer *peer, uint64_t remote) {
    for (tb_early **at = &peer->early; *at != NULL; at = &(*at)->next) {
        if ((*at)->prepare.graph == remote) {
            tb_early *early = *at;
            *at = early->next;
            peer->early_count--;
            free(early);
            return;
        }
    }
}

/* The sender's graph, whose number is in header->round, is no more: released, or its prepare failed. */
static int32_t on_release(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_error why;
    int32_t code = take_failure(header, body, &why, err);
    if (code != TB_OK) {
        return code;
    }
    drop_early(peer, header->round);
    for (tb_side *side = peer->sides; side != NULL; side = side->next) {
        if (side->remote != header->round || side->gone) {
            continue;
        }
        if (side->graph->state == TB_GRAPH_PREPARING && !side->matched) {
            side->remote = 0; /* an earlier attempt of the peer's; this one waits for its next */
            return TB_OK;
        }
        side->gone = true;
        if (side->graph->state == TB_GRAPH_PREPARING) {
            tb_graph_fail_prepare(side->graph, why.code, why.rank, 0, why.message);
        } else if (side->unfinished > 0) {
            tb_round_fail(side->graph, why.code, why.rank, 0, why.message);
        }
        return TB_OK;
    }
    return TB_OK;
}

static void on_match(tb_side *side, const tb_wire_header *header) {
    if (side->graph->state == TB_GRAPH_PREPARING && side->remote == header->round && !side->matched) {
        side->matched = true;
        tb_graph_check_prepared(side->graph);
    }
}

static int32_t on_grant(tb_side *side, const tb_wire_header *header, tb_error *err) {
    tb_graph *graph = side->graph;
    uint32_t channel = header->stage < TB_STAGES ? side->send[header->stage] : TB_NONE;
    if (channel == TB_NONE || header->count > graph->program.channels[channel].bucket_count) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a grant of %u buckets that there are not", header->count);
    }
    tb_channel_state *state = &graph->channels[channel];
    bool current = graph->state == TB_GRAPH_RUNNING && header->round == graph->round;
    if (header->round < graph->round || header->round < state->granted_round
        || (header->round == graph->round && !current)) {
        return TB_OK; /* of a round that is over */
    }
    uint32_t from = header->round == state->granted_round ? state->granted : 0;
    if (header->count < from) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a grant that takes another back");
    }
    if (!current && graph->state == TB_GRAPH_RUNNING) {
        /* A peer that is ahead never began this round, unless it has no more to do with it. */
        if (!graph->failing && !state->finished) {
            char message[96];
            snprintf(message, sizeof message, "rank %d went on to round %llu", side->peer->rank,
                     (unsigned long long)header->round);
            tb_round_fail(graph, TB_ECANCELLED, side->peer->rank, 0, message);
        }
    }
    state->granted_round = header->round;
    state->granted = header->count;
    if (current && !graph->failing) {
        tb_round_apply_grant(graph, channel, from);
    }
    return TB_OK;
}

static int32_t on_taken(tb_side *side, const tb_wire_header *header, tb_error *err) {
    tb_graph *graph = side->graph;
    uint32_t channel = header->stage < TB_STAGES ? side->send[header->stage] : TB_NONE;
    if (channel == TB_NONE) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt for nothing");
    }
    if (header->round != graph->round || graph->state != TB_GRAPH_RUNNING || graph->failing) {
        return TB_OK;
    }
    tb_channel_state *state = &graph->channels[channel];
    /* Claimed, not retired: a receipt may overtake this rank's own look at what its last write took. */
    if (state->finished || state->done != graph->program.channels[channel].bucket_count) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt for what was not sent");
    }
    state->finished = true;
    side->unfinished--;
    graph->sends_left--;
    tb_round_check(graph);
    return TB_OK;
}

/*
 * A failure goes on to all peers of the graph, once for each round, also from a rank that is done with the
 * round or has not begun it: there may be ranks that are unfinished and know its origin only by way of this
 * one.
 */
static int32_t on_abort(tb_side *side, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_graph *graph = side->graph;
    tb_error why;
    int32_t code = take_failure(header, body, &why, err);
    if (code != TB_OK || header->round <= graph->aborted_round) {
        return code;
    }
    if (header->round == graph->round && graph->state == TB_GRAPH_RUNNING) {
        tb_round_fail(graph, why.code, why.rank, 0, why.message);
        return TB_OK;
    }
    graph->aborted_round = header->round;
    graph->aborted = why;
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_graph_say_failure(&graph->sides[i], TB_FRAME_ABORT, header->round, &why);
    }
    return TB_OK;
}

int32_t tb_graph_on_frame(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    if (header->kind == TB_FRAME_PREPARE) {
        return on_prepare(peer, header, body, err);
    }
    if (header->kind == TB_FRAME_RELEASE) {
        return on_release(peer, header, body, err);
    }
    tb_side *side = tb_peer_side(peer, header->graph);
    if (side == NULL) {
        return TB_OK; /* of a graph that was released here */
    }
    switch (header->kind) {
    case TB_FRAME_MATCH:
        on_match(side, header);
        return TB_OK;
    case TB_FRAME_GRANT:
        return on_grant(side, header, err);
    case TB_FRAME_TAKEN:
        return on_taken(side, header, err);
    default:
        return on_abort(side, header, body, err);
    }
}
