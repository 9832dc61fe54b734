#include <string.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "round/round.h"

void tb_round_ready(tb_graph *graph, uint32_t bucket) {
    const tb_program *program = &graph->program;
    uint32_t index = program->buckets[bucket].channel;
    if (program->channels[index].direction == TB_LOCAL) {
        graph->buckets[bucket] = TB_BUCKET_QUEUED;
        tb_round_offer(graph, bucket);
        return;
    }
    tb_channel_state *state = &graph->channels[index];
    if (state->granted_round == graph->round && tb_bucket_sequence(program, bucket) < state->granted) {
        if (tb_is_pulled(graph, index)) {
            tb_pulls_ready(graph, bucket);
            return;
        }
        graph->buckets[bucket] = TB_BUCKET_QUEUED;
        tb_heap_push(&state->side->ready, bucket);
    }
}

void tb_round_apply_grant(tb_graph *graph, uint32_t channel, uint32_t from) {
    const tb_channel *row = &graph->program.channels[channel];
    tb_channel_state *state = &graph->channels[channel];
    for (uint32_t b = row->first_bucket + from; b < row->first_bucket + state->granted; b++) {
        if (graph->waits[b] == 0 && graph->buckets[b] == TB_BUCKET_IDLE) {
            tb_round_ready(graph, b);
        }
    }
    tb_pulls_say(graph);
    tb_peer_kick(state->side->peer);
}

/* Of several graphs that could send, the round that began first. */
static tb_side *oldest_ready(const tb_peer *peer) {
    tb_side *oldest = NULL;
    for (tb_side *side = peer->sides; side != NULL; side = side->next) {
        if (side->ready.count > 0 && (oldest == NULL || side->graph->started < oldest->graph->started)) {
            oldest = side;
        }
    }
    return oldest;
}

bool tb_round_claim(tb_peer *peer, tb_frame *frame) {
    tb_side *side = oldest_ready(peer);
    if (side == NULL) {
        return false;
    }
    tb_graph *graph = side->graph;
    uint32_t bucket = tb_heap_pop(&side->ready);
    const tb_channel *channel = tb_bucket_channel(&graph->program, bucket);
    graph->buckets[bucket] = TB_BUCKET_MOVING;
    graph->channels[graph->program.buckets[bucket].channel].done++;
    graph->active++;
    frame->graph = graph;
    frame->bucket = bucket;
    frame->checksum = (graph->flags & TB_GRAPH_CHECKSUM) != 0;
    frame->payload = graph->program.buckets[bucket].bytes;
    frame->sent = 0;
    frame->good = false;
    frame->crc = 0;
    frame->header = (tb_wire_header){
        .kind = TB_FRAME_DATA,
        .stage = channel->stage,
        .graph = side->remote,
        .round = graph->round,
        .body_bytes = frame->payload,
        .sequence = tb_bucket_sequence(&graph->program, bucket),
    };
    tb_flow_start(&frame->flow, &graph->places, bucket, false);
    return true;
}

void tb_round_sent(tb_graph *graph, uint32_t bucket) {
    if (!graph->failing) {
        tb_folds_read(graph, bucket);
        tb_round_bucket_done(graph, bucket);
    }
    tb_round_release(graph);
}
