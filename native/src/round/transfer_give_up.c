/* A cancel or a deadline: what it ends, and whom was waited for. The session's lock is held. */
#include <stdio.h>

#include "round/transfer.h"
#include "round/round.h"

/* The first peer that a prepare still waits for; NULL where there is none. */
static const tb_side *missing(const tb_graph *graph) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (!graph->sides[i].matched) {
            return &graph->sides[i];
        }
    }
    return NULL;
}

static void give_prepare_up(tb_graph *graph, int32_t code, int32_t rank) {
    char message[128];
    const tb_side *side = missing(graph);
    if (code != TB_ETIMEOUT || side == NULL) {
        snprintf(message, sizeof message, "rank %d gave up its prepare", rank);
    } else if (!side->peer->up) {
        snprintf(message, sizeof message, "rank %d waited too long for a connection with rank %d", rank,
                 side->peer->rank);
    } else {
        snprintf(message, sizeof message, "rank %d waited too long for rank %d to prepare", rank,
                 side->peer->rank);
    }
    tb_graph_fail_prepare(graph, code, rank, 0, message);
}

static const tb_side *unfinished(const tb_graph *graph) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].unfinished > 0) {
            return &graph->sides[i];
        }
    }
    return NULL;
}

static void give_round_up(tb_graph *graph, int32_t code, int32_t rank) {
    char message[128];
    const tb_side *side = unfinished(graph);
    unsigned long long round = graph->round;
    if (code != TB_ETIMEOUT) {
        snprintf(message, sizeof message, "rank %d cancelled round %llu", rank, round);
    } else if (side != NULL) {
        snprintf(message, sizeof message, "rank %d waited too long in round %llu, for rank %d first of all",
                 rank, round, side->peer->rank);
    } else {
        snprintf(message, sizeof message, "rank %d took too long for round %llu", rank, round);
    }
    tb_round_fail(graph, code, rank, 0, message);
}

void tb_graph_give_up(tb_graph *graph, int32_t code) {
    int32_t rank = graph->session->options.rank;
    if (graph->state == TB_GRAPH_PREPARING) {
        give_prepare_up(graph, code, rank);
    } else if (graph->state == TB_GRAPH_RUNNING) {
        give_round_up(graph, code, rank);
    }
}
