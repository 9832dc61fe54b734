#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/round.h"

/* Of buckets below this size more may be under way: they take less of a link than it takes to ask for one. */
enum { SMALL_BUCKET = 1024 * 1024 };

void tb_round_announce(tb_graph *graph, uint32_t channel) {
    tb_channel_state *state = &graph->channels[channel];
    tb_wire_header header = {
        .kind = TB_FRAME_GRANT,
        .stage = graph->program.channels[channel].stage,
        .count = state->granted,
        .graph = state->side->remote,
        .round = graph->round,
    };
    state->announce = false;
    tb_peer_say(state->side->peer, &header, NULL);
}

static void grant_all(tb_graph *graph, uint32_t channel) {
    graph->channels[channel].granted = graph->program.channels[channel].bucket_count;
    tb_round_announce(graph, channel);
}

/* What NCCL brings was granted when the ranks began the round together. */
static bool is_granted(const tb_graph *graph, uint32_t index) {
    const tb_channel *channel = &graph->program.channels[index];
    return channel->direction == TB_RECEIVE && channel->stage > 0 && !tb_is_by_nccl(graph, index);
}

void tb_round_grant_pooled(tb_graph *graph) {
    for (uint32_t i = 0; i < graph->program.header->channel_count; i++) {
        if (is_granted(graph, i) && graph->channels[i].side->pooled) {
            grant_all(graph, i);
        }
    }
}

static bool takes_turns(const tb_graph *graph, uint32_t channel) {
    return is_granted(graph, channel) && !graph->channels[channel].side->pooled;
}

void tb_round_grant_turns(tb_graph *graph, uint8_t stage) {
    const tb_program *program = &graph->program;
    uint64_t most = (uint64_t)program->header->peers_in_flight * program->header->buckets_in_flight;
    uint64_t largest = program->header->bucket_bytes;
    uint64_t most_bytes = most * (largest < SMALL_BUCKET ? largest : SMALL_BUCKET);
    if (graph->turns[stage].buckets >= most && graph->turns[stage].bytes > most_bytes / 2) {
        return;
    }
    uint32_t first = graph->turns[stage].next;
    while (graph->turns[stage].next < program->turn_count[stage]
           && (graph->turns[stage].buckets < most || graph->turns[stage].bytes < most_bytes)) {
        uint32_t channel = program->turns[stage][graph->turns[stage].next++];
        tb_channel_state *state = &graph->channels[channel];
        if (!takes_turns(graph, channel)) {
            continue;
        }
        uint32_t bucket = program->channels[channel].first_bucket + state->granted++;
        graph->turns[stage].buckets++;
        graph->turns[stage].bytes += program->buckets[bucket].bytes;
        state->announce = true;
    }
    for (uint32_t i = first; i < graph->turns[stage].next; i++) {
        if (graph->channels[program->turns[stage][i]].announce) {
            tb_round_announce(graph, program->turns[stage][i]);
        }
    }
}

static int32_t check_bucket(const tb_graph *graph, uint32_t channel, const tb_wire_header *header,
                            tb_error *err) {
    const tb_channel *row = &graph->program.channels[channel];
    if (header->sequence >= graph->channels[channel].granted) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u was not granted", header->sequence,
                       header->stage);
    }
    uint32_t bucket = row->first_bucket + header->sequence;
    if (header->body_bytes != graph->program.buckets[bucket].bytes) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u came with another size",
                       header->sequence, header->stage);
    }
    uint8_t expected = header->stage == 0 ? TB_BUCKET_ALLOWED : TB_BUCKET_IDLE;
    if (graph->buckets[bucket] != expected) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u came twice", header->sequence,
                       header->stage);
    }
    return TB_OK;
}

int32_t tb_round_arrive(tb_side *side, tb_arrival *arrival, tb_error *err) {
    const tb_wire_header *header = &arrival->header;
    tb_graph *graph = side->graph;
    arrival->graph = NULL;
    if (header->stage >= TB_STAGES || side->receive[header->stage] == TB_NONE || header->round > graph->round
        || tb_is_pulled(graph, side->receive[header->stage])) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a bucket that nobody asked for");
    }
    if (header->round < graph->round || graph->state != TB_GRAPH_RUNNING || graph->failing) {
        return TB_OK; /* of a round that failed here */
    }
    uint32_t channel = side->receive[header->stage];
    int32_t code = check_bucket(graph, channel, header, err);
    if (code != TB_OK) {
        return code;
    }
    uint32_t bucket = graph->program.channels[channel].first_bucket + header->sequence;
    graph->buckets[bucket] = TB_BUCKET_MOVING;
    graph->active++;
    arrival->graph = graph;
    arrival->bucket = bucket;
    arrival->slot = TB_NONE;
    arrival->checksum = (graph->flags & TB_GRAPH_CHECKSUM) != 0;
    arrival->crc = 0;
    if (header->stage > 0 || tb_folds_turn(graph, bucket)) {
        tb_flow_start(&arrival->flow, &graph->places, bucket, true);
        return TB_OK;
    }
    /* There is a slot for every contribution that was allowed to come. */
    arrival->slot = graph->free_slots[--graph->free_slot_count];
    graph->slot_of[bucket] = arrival->slot;
    tb_staging_add(&graph->staging, header->body_bytes);
    tb_flow_start_row(&arrival->flow, graph->slots + arrival->slot * graph->program.slot_bytes,
                      header->body_bytes);
    return TB_OK;
}

static void finish_channel(tb_graph *graph, uint32_t channel) {
    tb_channel_state *state = &graph->channels[channel];
    tb_wire_header taken = {
        .kind = TB_FRAME_TAKEN,
        .stage = graph->program.channels[channel].stage,
        .graph = state->side->remote,
        .round = graph->round,
    };
    state->finished = true;
    state->side->unfinished--;
    graph->receives_left--;
    tb_peer_say(state->side->peer, &taken, NULL);
}

void tb_round_consumed(tb_graph *graph, uint32_t bucket) {
    uint32_t channel = graph->program.buckets[bucket].channel;
    if (++graph->channels[channel].done == graph->program.channels[channel].bucket_count) {
        finish_channel(graph, channel);
    }
    if (takes_turns(graph, channel)) {
        uint8_t stage = graph->program.channels[channel].stage;
        graph->turns[stage].buckets--;
        graph->turns[stage].bytes -= graph->program.buckets[bucket].bytes;
        tb_round_grant_turns(graph, stage);
    }
}

void tb_round_arrived(tb_graph *graph, uint32_t bucket, uint32_t slot) {
    if (graph->failing) {
        tb_round_release(graph);
        return;
    }
    if (tb_bucket_channel(&graph->program, bucket)->stage > 0) {
        tb_round_bucket_done(graph, bucket);
        tb_round_consumed(graph, bucket);
    } else if (slot == TB_NONE) {
        tb_folds_done(graph, bucket);
    } else {
        graph->buckets[bucket] = TB_BUCKET_STAGED;
        if (tb_folds_turn(graph, bucket)) {
            graph->buckets[bucket] = TB_BUCKET_QUEUED;
            tb_round_offer(graph, bucket);
        }
    }
    tb_round_release(graph);
}
