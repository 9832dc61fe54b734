/* How the ends of a graph find each other at prepare. The session's lock is held in all of this. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/round.h"

/* ---- saying -------------------------------------------------------------------------------------------- */

/* Of the memory that the graph has to do with. */
static tb_wire_host host_of(const tb_graph *graph) {
    tb_wire_host host = graph->session->host;
    for (uint32_t i = 0; i < graph->program.header->buffer_count; i++) {
        if (graph->regions[i] != TB_NONE) {
            host.memory |= graph->session->regions[graph->regions[i]].memory;
        }
    }
    return host;
}

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
        .joined = graph->joined,
        .host = host_of(graph),
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

void tb_graph_say_match(tb_side *side) {
    tb_wire_header header = {
        .kind = TB_FRAME_MATCH, .count = side->carrier, .graph = side->remote, .round = side->graph->handle};
    side->said_match = true;
    tb_peer_say(side->peer, &header, NULL);
    tb_graph_check_prepared(side->graph);
}
/* ---- prepare ------------------------------------------------------------------------------------------- */

void tb_graph_let_regions_go(tb_graph *graph) {
    if (!graph->holds_regions || graph->quarantined) {
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
        if (graph->sides[i].import != NULL) {
            tb_import_drop(graph->sides[i].import);
        }
    }
    tb_graph_leave_peers(graph);
    tb_graph_let_regions_go(graph);
    graph->error = error;
    graph->state = TB_GRAPH_ENDING;
    tb_graph_end_late(graph);
}

void tb_graph_end_late(tb_graph *graph) {
    if (graph->state == TB_GRAPH_ENDING && graph->active == 0) {
        end_prepare(graph, TB_GRAPH_DEAD, &graph->error);
    }
}

void tb_graph_refuse(tb_graph *graph, int32_t code, int32_t rank, int os_errno, const char *message) {
    graph->refused = true;
    tb_graph_fail_prepare(graph, code, rank, os_errno, message);
}

void tb_graph_check_prepared(tb_graph *graph) {
    if (graph->state != TB_GRAPH_PREPARING) {
        return;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        const tb_side *side = &graph->sides[i];
        if (side->remote == 0 || !side->matched || !side->said_match) {
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

static bool sends(const tb_side *side) {
    return side->send[0] != TB_NONE || side->send[1] != TB_NONE || side->send[2] != TB_NONE;
}

static bool receives(const tb_side *side) {
    return side->receive[0] != TB_NONE || side->receive[1] != TB_NONE || side->receive[2] != TB_NONE;
}

static bool exchanges(const tb_side *side) {
    return sends(side) || receives(side);
}

/* What was known of the peer before is not so any more, at one of the two: to be asked for and prepared again. */
static void say_moved(tb_side *side) {
    char message[128];
    snprintf(message, sizeof message, "rank %d is not where it was said to be, or takes others to be elsewhere",
             side->peer->rank);
    tb_graph_fail_prepare(side->graph, TB_EINVALIDATED, side->peer->rank, ESTALE, message);
}

/* The two agree on it without a word. Who is to be read from exports, who is to read says MATCH once it can.
 */
static void choose_carrier(tb_side *side) {
    tb_graph *graph = side->graph;
    tb_error error;
    enum tb_carrier_number carrier;
    bool moved = (side->joins || side->by_nccl) && graph->joined != 0 && side->joined != graph->joined;
    if (!exchanges(side)) {
        moved ? say_moved(side) : tb_graph_say_match(side);
        return;
    }
    tb_wire_host own = host_of(graph);
    bool lower = graph->session->options.rank < side->peer->rank;
    int32_t code = tb_carrier_select(lower ? &own : &side->host, lower ? &side->host : &own, graph->flags,
                                     &carrier, &error);
    if (code == TB_OK && (moved || (carrier == TB_CARRIER_NCCL) != side->by_nccl)) {
        say_moved(side);
        return;
    }
    if (code == TB_OK) {
        side->carrier = carrier;
        bool pulled = carrier != TB_CARRIER_STREAM && carrier != TB_CARRIER_NCCL;
        if (pulled && sends(side)) {
            code = tb_export_say(side, &error);
        }
        if (code == TB_OK && pulled && receives(side) && (side->import = tb_import_create(side)) == NULL) {
            code = tb_fail(&error, TB_ENO_MEMORY, -1, 0, "an import");
        }
    }
    if (code != TB_OK) {
        tb_graph_refuse(graph, code, side->peer->rank, error.os_errno, error.message);
    } else if (side->import == NULL) {
        tb_graph_say_match(side);
    }
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
    side->host = prepare->host;
    side->joined = prepare->joined;
    choose_carrier(side);
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

int32_t tb_graph_on_prepare(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
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

void tb_graph_drop_early(tb_peer *peer, uint64_t remote) {
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

/* It was an earlier attempt of the peer's; this side waits for its next. */
void tb_graph_forget_attempt(tb_side *side) {
    side->remote = 0;
    side->said_match = false;
    side->carrier = TB_CARRIER_STREAM;
    if (side->import != NULL) {
        tb_import_drop(side->import);
    }
}

/* It may have found that its carrier does not reach us: then it is the stream for both. */
int32_t tb_graph_on_match(tb_side *side, const tb_wire_header *header, tb_error *err) {
    if (side->graph->state != TB_GRAPH_PREPARING || side->remote != header->round || side->matched) {
        return TB_OK;
    }
    if (header->count != side->carrier && header->count != TB_CARRIER_STREAM
        && side->carrier != TB_CARRIER_STREAM) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "another carrier, %u", header->count);
    }
    side->matched = true;
    if (header->count == TB_CARRIER_STREAM && side->carrier != TB_CARRIER_STREAM) {
        side->carrier = TB_CARRIER_STREAM;
        if (side->import != NULL) {
            tb_import_drop(side->import);
        }
        if (!side->said_match) {
            tb_graph_say_match(side);
        }
    }
    tb_graph_check_prepared(side->graph);
    return TB_OK;
}

int32_t tb_graph_on_export(tb_side *side, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    if (side->graph->state != TB_GRAPH_PREPARING || side->remote != header->round || side->import == NULL) {
        return TB_OK; /* of an attempt that was given up, or of no use any more */
    }
    return tb_import_take(side->import, body, header->body_bytes, err);
}
