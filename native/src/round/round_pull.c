/*
 * Rounds of channels whose buckets the target reads in the source's memory: what the two say to each other,
 * and when the source's memory is free. The session's lock is held in all of this but tb_pull_end.
 *
 * A bucket of a source is exposed from READY until its target says READ, or TAKEN for the whole channel. A
 * round that fails with buckets exposed asks their targets for quiet by its ABORT, and stays under way until
 * each has said QUIET, has ended its connection (which it does not before it has come to rest), or is a
 * process that is gone.
 */
#include <stdio.h>
#include <stdlib.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/round.h"

#define LOOK_NS 10000000ull /* between two looks at a process whose connection was lost */

bool tb_is_pulled(const tb_graph *graph, uint32_t channel) {
    const tb_side *side = graph->channels[channel].side;
    return side != NULL && side->carrier != TB_CARRIER_STREAM && side->carrier != TB_CARRIER_NCCL;
}

/* ---- the source ---------------------------------------------------------------------------------------- */

void tb_carrier_ready(tb_side *side, uint8_t stage, uint32_t first, uint32_t count) {
    tb_wire_header header = {.kind = TB_FRAME_READY,
                             .stage = stage,
                             .count = count,
                             .graph = side->remote,
                             .round = side->graph->round,
                             .sequence = first};
    tb_peer_say(side->peer, &header, NULL);
}

void tb_pulls_say(tb_graph *graph) {
    tb_side *side = graph->offer.side;
    uint32_t count = graph->offer.count;
    if (count == 0) {
        return;
    }
    graph->offer.count = 0;
    const tb_carrier *carrier = tb_carriers[side->carrier];
    if (carrier->ready == NULL || carrier->ready(side, graph->offer.stage, graph->offer.first, count)) {
        tb_carrier_ready(side, graph->offer.stage, graph->offer.first, count);
    }
}

void tb_pulls_ready(tb_graph *graph, uint32_t bucket) {
    const tb_program *program = &graph->program;
    uint32_t index = program->buckets[bucket].channel;
    uint32_t sequence = tb_bucket_sequence(program, bucket);
    uint8_t stage = program->channels[index].stage;
    tb_side *side = graph->channels[index].side;
    bool goes_on = graph->offer.count > 0 && graph->offer.side == side && graph->offer.stage == stage
                   && sequence == graph->offer.first + graph->offer.count;
    if (!goes_on) {
        tb_pulls_say(graph);
        graph->offer.side = side;
        graph->offer.stage = stage;
        graph->offer.first = sequence;
    }
    graph->offer.count++;
    graph->buckets[bucket] = TB_BUCKET_MOVING;
    graph->channels[index].done++;
    side->exposed++;
}

static void was_read(tb_side *side, uint32_t bucket) {
    tb_graph *graph = side->graph;
    side->exposed--;
    atomic_fetch_add_explicit(&graph->bytes_sent, graph->program.buckets[bucket].bytes, memory_order_relaxed);
    graph->buckets[bucket] = TB_BUCKET_DONE;
    tb_folds_read(graph, bucket);
    tb_round_bucket_done(graph, bucket);
}

int32_t tb_pulls_on_read(tb_side *side, const tb_wire_header *header, tb_error *err) {
    tb_graph *graph = side->graph;
    uint32_t channel = header->stage < TB_STAGES ? side->send[header->stage] : TB_NONE;
    if (channel == TB_NONE || header->sequence >= graph->program.channels[channel].bucket_count) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt for nothing");
    }
    if (header->round != graph->round || graph->state != TB_GRAPH_RUNNING || graph->failing) {
        return TB_OK;
    }
    uint32_t bucket = graph->program.channels[channel].first_bucket + header->sequence;
    if (!tb_is_pulled(graph, channel) || graph->buckets[bucket] != TB_BUCKET_MOVING) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a receipt for what can not be read");
    }
    was_read(side, bucket);
    return TB_OK;
}

void tb_pulls_taken(tb_side *side, uint32_t channel) {
    tb_graph *graph = side->graph;
    const tb_channel *row = &graph->program.channels[channel];
    for (uint32_t b = row->first_bucket; b < row->first_bucket + row->bucket_count; b++) {
        if (graph->buckets[b] == TB_BUCKET_MOVING) {
            was_read(side, b);
        }
    }
}

/* ---- the source's memory ------------------------------------------------------------------------------- */

void tb_pulls_await_quiet(tb_graph *graph) {
    tb_session *session = graph->session;
    graph->offer.count = 0;
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_side *side = &graph->sides[i];
        if (side->exposed > 0 && !side->awaits_quiet) {
            side->awaits_quiet = true;
            graph->active++;
            graph->quiet_deadline = tb_deadline((uint64_t)session->options.quiesce_ms * 1000000);
            tb_session_timer(session, side->gone ? tb_now() : graph->quiet_deadline);
        }
    }
}

void tb_pulls_are_quiet(tb_side *side) {
    side->exposed = 0;
    if (side->awaits_quiet) {
        side->awaits_quiet = false;
        tb_round_release(side->graph);
    }
}

void tb_pulls_on_quiet(tb_side *side, const tb_wire_header *header) {
    if (side->awaits_quiet && header->round == side->graph->round) {
        tb_pulls_are_quiet(side);
    }
}

static void quarantine(tb_graph *graph) {
    tb_session *session = graph->session;
    uint32_t given_up = 0;
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_side *side = &graph->sides[i];
        if (side->awaits_quiet) {
            side->awaits_quiet = false;
            side->gone = true;
            given_up++;
            tb_fail(&graph->error, TB_EQUARANTINED, side->peer->rank, 0,
                    "rank %d may still read memory of round %llu, %u ms after it failed: %.200s",
                    side->peer->rank, (unsigned long long)graph->round, session->options.quiesce_ms,
                    graph->aborted.message);
        }
    }
    graph->quarantined = true;
    session->quarantined = true;
    for (uint32_t i = 0; i < graph->program.header->buffer_count; i++) {
        if (graph->regions[i] != TB_NONE) {
            session->regions[graph->regions[i]].quarantined = true;
        }
    }
    graph->quiet_deadline = 0;
    graph->active -= given_up;
    tb_round_check(graph);
}

uint64_t tb_pulls_look(tb_graph *graph, uint64_t now) {
    bool lost = false;
    for (uint32_t i = 0; i < graph->side_count && graph->quiet_deadline != 0; i++) {
        tb_side *side = &graph->sides[i];
        if (!side->awaits_quiet || !side->gone) {
            continue;
        }
        if (tb_host_lives(&side->host)) {
            lost = true;
        } else {
            tb_pulls_are_quiet(side);
        }
    }
    if (graph->quiet_deadline == 0) {
        return 0;
    }
    if (now >= graph->quiet_deadline) {
        quarantine(graph);
        return 0;
    }
    return lost && now + LOOK_NS < graph->quiet_deadline ? now + LOOK_NS : graph->quiet_deadline;
}

/* ---- the target ---------------------------------------------------------------------------------------- */

void tb_pulls_grant(tb_graph *graph) {
    for (uint32_t i = 0; i < graph->program.header->channel_count; i++) {
        const tb_channel *channel = &graph->program.channels[i];
        if (channel->direction == TB_RECEIVE && channel->stage == 0 && tb_is_pulled(graph, i)) {
            graph->channels[i].granted = channel->bucket_count;
            tb_round_announce(graph, i);
        }
    }
}

void tb_pulls_came(tb_graph *graph, uint32_t bucket) {
    bool fold = tb_bucket_channel(&graph->program, bucket)->stage == 0;
    if (fold && graph->buckets[bucket] == TB_BUCKET_IDLE) {
        graph->buckets[bucket] = TB_BUCKET_READY;
    } else if (fold && !tb_folds_turn(graph, bucket)) {
        graph->buckets[bucket] = TB_BUCKET_STAGED;
    } else {
        graph->buckets[bucket] = TB_BUCKET_QUEUED;
        tb_round_offer(graph, bucket);
    }
}

int32_t tb_pulls_on_ready(tb_side *side, const tb_wire_header *header, tb_error *err) {
    tb_graph *graph = side->graph;
    uint32_t channel = header->stage < TB_STAGES ? side->receive[header->stage] : TB_NONE;
    if (channel == TB_NONE || header->round > graph->round || !tb_is_pulled(graph, channel)) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "buckets that nobody asked for");
    }
    if (header->round < graph->round || graph->state != TB_GRAPH_RUNNING || graph->failing) {
        return TB_OK; /* of a round that failed here */
    }
    const tb_channel *row = &graph->program.channels[channel];
    uint32_t granted = graph->channels[channel].granted;
    if (header->sequence > granted || header->count > granted - header->sequence) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u was not granted", header->sequence,
                       header->stage);
    }
    uint32_t first = row->first_bucket + header->sequence;
    for (uint32_t b = first; b < first + header->count; b++) {
        bool comes = graph->buckets[b] == TB_BUCKET_IDLE
                     || (row->stage == 0 && graph->buckets[b] == TB_BUCKET_ALLOWED);
        if (!comes) {
            return tb_fail(err, TB_EPROTOCOL, -1, 0, "bucket %u of stage %u came twice",
                           b - row->first_bucket, header->stage);
        }
        tb_pulls_came(graph, b);
    }
    return TB_OK;
}

static void say_quiet(tb_side *side) {
    tb_wire_header header = {.kind = TB_FRAME_QUIET, .graph = side->remote, .round = side->owes_quiet};
    side->owes_quiet = 0;
    tb_peer_say(side->peer, &header, NULL);
}

void tb_pulls_owe_quiet(tb_side *side, uint64_t round) {
    if (side->carrier == TB_CARRIER_STREAM || side->carrier == TB_CARRIER_NCCL) {
        return;
    }
    side->owes_quiet = round;
    if (side->pulling == 0) {
        say_quiet(side);
    }
}

void tb_pull_begin(tb_graph *graph, tb_side *side) {
    graph->active++;
    graph->pulling++;
    side->pulling++;
}

void tb_pull_over(tb_graph *graph, tb_side *side) {
    tb_session *session = graph->session;
    graph->pulling--;
    side->pulling--;
    if (side->pulling == 0 && side->owes_quiet != 0) {
        say_quiet(side);
    }
    if (graph->failing && --session->stale_pulls == 0) {
        tb_session_rests(session);
    }
    tb_round_release(graph);
}

static void say_read(tb_graph *graph, uint32_t bucket) {
    uint32_t index = graph->program.buckets[bucket].channel;
    const tb_channel *channel = &graph->program.channels[index];
    tb_side *side = graph->channels[index].side;
    if (graph->channels[index].done + 1 == channel->bucket_count) {
        return; /* TAKEN says it */
    }
    tb_wire_header header = {.kind = TB_FRAME_READ,
                             .stage = channel->stage,
                             .graph = side->remote,
                             .round = graph->round,
                             .sequence = tb_bucket_sequence(&graph->program, bucket)};
    tb_peer_say(side->peer, &header, NULL);
}

void tb_pull_finish(tb_graph *graph, tb_side *side, uint32_t bucket) {
    if (!graph->failing) {
        say_read(graph, bucket);
        if (tb_bucket_channel(&graph->program, bucket)->stage == 0) {
            tb_folds_done(graph, bucket);
        } else {
            tb_round_bucket_done(graph, bucket);
            tb_round_consumed(graph, bucket);
        }
    }
    tb_pull_over(graph, side);
}

void tb_pull_end(tb_pull *pull, int32_t code, int32_t rank, int os_errno, const char *message) {
    tb_graph *graph = pull->graph;
    tb_session *session = graph->session;
    pthread_mutex_lock(&session->lock);
    if (code != TB_OK) {
        tb_round_fail(graph, code, rank, os_errno, message);
    } else if (!graph->failing) {
        atomic_fetch_add_explicit(pull->side == NULL ? &graph->bytes_copied : &graph->bytes_received,
                                  pull->bytes, memory_order_relaxed);
    }
    if (pull->side != NULL) {
        tb_pull_finish(graph, pull->side, pull->bucket);
    } else {
        tb_round_moved(graph, pull->bucket);
    }
    pthread_mutex_unlock(&session->lock);
    free(pull);
}
