/* What the ends of a graph say to each other once they are paired. The session's lock is held in all of this.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "carriers/nccl/nccl_rounds.h"
#include "round/round.h"


void tb_graph_say_failure(tb_side *side, uint8_t kind, uint64_t number, const tb_error *error) {
    if (side->gone || !side->told) {
        return;
    }
    uint8_t body[sizeof(tb_wire_failure) + TB_REASON_BYTES];
    uint32_t release = side->graph->refused       ? TB_RELEASE_FOR_GOOD
                       : error->os_errno == ESTALE || side->graph->moved ? TB_RELEASE_MOVED
                                                                       : TB_RELEASE_ONCE;
    /* The deadline that passed was ours; for the others, this rank gave up. */
    tb_wire_failure failure = {error->code == TB_ETIMEOUT ? TB_ECANCELLED : error->code, error->rank};
    size_t length = strnlen(error->message, TB_REASON_BYTES);
    memcpy(body, &failure, sizeof failure);
    memcpy(body + sizeof failure, error->message, length);
    tb_wire_header header = {.kind = kind,
                             .count = kind == TB_FRAME_RELEASE ? release : 0,
                             .graph = side->remote,
                             .round = number,
                             .body_bytes = sizeof failure + length};
    tb_peer_say(side->peer, &header, body);
}

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

/* The sender's graph, whose number is in header->round, is no more: released, or its prepare failed. */
static int32_t on_release(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_error why;
    int32_t code = take_failure(header, body, &why, err);
    if (code != TB_OK) {
        return code;
    }
    tb_graph_drop_early(peer, header->round);
    bool for_good = header->count == TB_RELEASE_FOR_GOOD;
    for (tb_side *side = peer->sides; side != NULL; side = side->next) {
        if (side->remote != header->round || side->gone) {
            continue;
        }
        if (side->graph->state == TB_GRAPH_PREPARING && !side->matched && !for_good) {
            tb_graph_forget_attempt(side);
            return TB_OK;
        }
        side->gone = true;
        side->graph->moved |= header->count == TB_RELEASE_MOVED;
        tb_pulls_are_quiet(side); /* it has nothing under way */
        if (side->graph->state == TB_GRAPH_PREPARING) {
            int moved = header->count == TB_RELEASE_MOVED ? ESTALE : 0;
            tb_graph_fail_prepare(side->graph, why.code, why.rank, moved, why.message);
        } else if (side->unfinished > 0) {
            tb_round_fail(side->graph, why.code, why.rank, 0, why.message);
        }
        if (side->graph->waves != NULL) {
            tb_nccl_on_release(side, &why);
        }
        return TB_OK;
    }
    return TB_OK;
}


static int32_t on_grant(tb_side *side, const tb_wire_header *header, tb_error *err) {
    tb_graph *graph = side->graph;
    uint32_t channel = header->stage < TB_STAGES ? side->send[header->stage] : TB_NONE;
    if (channel == TB_NONE || tb_is_by_nccl(graph, channel)
        || header->count > graph->program.channels[channel].bucket_count) {
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
    if (tb_is_pulled(graph, channel)) {
        tb_pulls_taken(side, channel);
    }
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
static void spread_abort(tb_graph *graph, uint64_t round, const tb_error *why) {
    if (round <= graph->aborted_round) {
        return;
    }
    if (round == graph->round && graph->state == TB_GRAPH_RUNNING) {
        tb_round_fail(graph, why->code, why->rank, 0, why->message);
        return;
    }
    graph->aborted_round = round;
    graph->aborted = *why;
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_graph_say_failure(&graph->sides[i], TB_FRAME_ABORT, round, why);
    }
}

static int32_t on_abort(tb_side *side, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_graph *graph = side->graph;
    tb_error why;
    int32_t code = take_failure(header, body, &why, err);
    if (code == TB_OK) {
        spread_abort(graph, header->round, &why);
        tb_pulls_owe_quiet(side, header->round);
        if (graph->waves != NULL) {
            tb_nccl_on_abort(side, header->round, why.code);
        }
    }
    return code;
}

int32_t tb_graph_on_frame(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    if (header->kind == TB_FRAME_PREPARE) {
        return tb_graph_on_prepare(peer, header, body, err);
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
        return tb_graph_on_match(side, header, err);
    case TB_FRAME_EXPORT:
        return tb_graph_on_export(side, header, body, err);
    case TB_FRAME_READY:
        return tb_pulls_on_ready(side, header, err);
    case TB_FRAME_READ:
        return tb_pulls_on_read(side, header, err);
    case TB_FRAME_QUIET:
        tb_pulls_on_quiet(side, header);
        return TB_OK;
    case TB_FRAME_BEGIN:
        if (side->graph->waves != NULL) {
            tb_nccl_on_begin(side, header);
        }
        return TB_OK;
    case TB_FRAME_TURN:
        return side->graph->waves != NULL ? tb_nccl_on_turn(side, header, err) : TB_OK;
    case TB_FRAME_DRAIN:
        if (side->graph->waves != NULL) {
            tb_nccl_on_drain(side, header);
        }
        return TB_OK;
    case TB_FRAME_GRANT:
        return on_grant(side, header, err);
    case TB_FRAME_TAKEN:
        return on_taken(side, header, err);
    default:
        return on_abort(side, header, body, err);
    }
}
