/*
 * What must be so after every step, and at the end. What must be so at every change of a state or a counter is checked where
 * it changes (round/invariants.h).
 */
#include <string.h>

#include "kernels/crc32c.h"
#include "sim.h"

static void check_channels(const tb_transfer *transfer, int rank) {
    const tb_program_header *header = transfer->program.header;
    uint32_t receives = 0;
    uint32_t sends = 0;
    for (uint32_t i = 0; i < header->channel_count; i++) {
        const tb_channel *channel = &transfer->program.channels[i];
        const tb_channel_state *state = &transfer->channels[i];
        SIM_CHECK(state->granted <= channel->bucket_count && state->done <= channel->bucket_count,
                  "rank %d, channel %u: %u granted and %u done of %u", rank, i, state->granted, state->done,
                  channel->bucket_count);
        SIM_CHECK(state->in_flight <= header->buckets_in_flight, "rank %d, channel %u: %u in flight", rank, i,
                  state->in_flight);
        receives += channel->direction == TB_RECEIVE && !state->finished;
        sends += channel->direction == TB_SEND && !state->finished;
    }
    SIM_CHECK(receives == transfer->receives_left && sends == transfer->sends_left,
              "rank %d: %u and %u channels are unfinished, not %u and %u", rank, receives, sends,
              transfer->receives_left, transfer->sends_left);
}

/* Nothing is offered, sent or read before what it hands on has come. */
static void check_order(const tb_transfer *transfer, int rank) {
    const tb_program *program = &transfer->program;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        for (uint32_t i = 0; i < bucket->dependency_count && transfer->buckets[b] != TB_BUCKET_IDLE; i++) {
            uint32_t on = program->dependencies[bucket->first_dependency + i];
            SIM_CHECK(transfer->buckets[on] == TB_BUCKET_DONE, "rank %d: bucket %u moves before bucket %u has come", rank,
                      b, on);
        }
    }
    for (int stage = 1; stage < TB_STAGES; stage++) {
        SIM_CHECK(transfer->turns[stage].next <= program->turn_count[stage], "rank %d: turn %u of %u in stage %d", rank,
                  transfer->turns[stage].next, program->turn_count[stage], stage);
    }
}

static void check_transfer(sim_rank *rank, int number) {
    const tb_transfer *transfer = rank->transfer;
    uint32_t pulling = 0;
    uint32_t exposed = 0;
    uint32_t awaits = 0;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        pulling += exchange->pulling;
        exposed += exchange->exposed;
        awaits += exchange->awaits_quiet;
        SIM_CHECK(exchange->exposed <= transfer->program.header->bucket_count, "rank %d exposes %u buckets", number,
                  exchange->exposed);
    }
    SIM_CHECK(pulling == transfer->pulling, "rank %d pulls %u buckets, not %u", number, pulling, transfer->pulling);
    SIM_CHECK(pulling + awaits <= transfer->active, "rank %d: %u operations, of which %u pull and %u await quiet", number,
              transfer->active, pulling, awaits);
    bool running = transfer->state == TB_TRANSFER_RUNNING;
    bool ready = transfer->state == TB_TRANSFER_READY;
    /* A peer that may still read after quiesce_ms has the memory for good. */
    SIM_CHECK(exposed == 0 || running || transfer->quarantined, "rank %d exposes memory outside of a round", number);
    SIM_CHECK(!ready || transfer->active == 0, "rank %d is at rest with %u operations", number, transfer->active);
    SIM_CHECK(!running || transfer->failing == atomic_load(&transfer->stop), "rank %d: stop is not as failing", number);
    SIM_CHECK(!(running && transfer->failing) || transfer->quarantined || (exposed > 0) == (awaits > 0),
              "rank %d: a failed round exposes %u buckets, %u peers are to say that they read no more", number, exposed,
              awaits);
    SIM_CHECK(transfer->folds_in_flight <= transfer->program.slot_count, "rank %d: %u folds in flight", number,
              transfer->folds_in_flight);
    SIM_CHECK(transfer->free_slot_count <= transfer->program.slot_count, "rank %d: %u free slots", number,
              transfer->free_slot_count);
    if (running && !transfer->failing) {
        check_channels(transfer, number);
        check_order(transfer, number);
    }
}

void sim_check(void) {
    for (int i = 0; i < SIM_RANKS; i++) {
        sim_rank *rank = &the_sim->ranks[i];
        if (!rank->alive || rank->transfer == NULL) {
            continue;
        }
        check_transfer(rank, i);
        uint32_t stale = rank->transfer->failing ? rank->transfer->pulling : 0;
        SIM_CHECK(rank->session->stale_pulls == stale, "rank %d: %u stale pulls, not %u", i, rank->session->stale_pulls,
                  stale);
    }
}

uint32_t sim_target_crc(const sim_rank *rank) {
    uint32_t crc = 0;
    for (int t = 0; t < KIT_TENSORS; t++) {
        if (rank->memory[t][1] != NULL) {
            crc = tb_crc32c(crc, rank->memory[t][1], the_sim->k.span[t][1]);
        }
    }
    return crc;
}

static bool is_written(int rank, const kit_bucket *bucket) {
    return bucket->stage > 0 && bucket->destination == (uint32_t)rank;
}

/* Tensor 0 is the sum of all ranks' sources, wherever it came by; others are copies of the rank that sends them. */
void sim_check_bytes(int rank) {
    const sim *s = the_sim;
    for (int b = 0; b < s->k.bucket_count; b++) {
        const kit_bucket *bucket = &s->k.buckets[b];
        for (uint32_t c = 0; c < bucket->chunk_count && is_written(rank, bucket); c++) {
            const kit_chunk *chunk = &bucket->chunks[c];
            uint64_t at = (uint64_t)chunk->destination.words[0];
            uint64_t bytes = (uint64_t)chunk->destination.words[2];
            const uint8_t *got = s->ranks[rank].memory[chunk->tensor][1] + at;
            if (chunk->tensor > 0) {
                /* What is handed on was rank 0's. */
                const sim_rank *origin = &s->ranks[bucket->stage == 2 ? 0 : bucket->source];
                const uint8_t *from = origin->memory[chunk->tensor][0] + chunk->source.words[0];
                SIM_CHECK(memcmp(got, from, bytes) == 0, "rank %d: bucket %d has wrong bytes", rank, b);
                continue;
            }
            for (uint64_t i = at; i < at + bytes; i += 4) {
                uint32_t sum = 0;
                uint32_t found;
                for (int r = 0; r < SIM_RANKS; r++) {
                    uint32_t part;
                    memcpy(&part, s->ranks[r].memory[0][0] + i, 4);
                    sum += part;
                }
                memcpy(&found, s->ranks[rank].memory[0][1] + i, 4);
                SIM_CHECK(found == sum, "rank %d: element %d of the sum is %u, not %u", rank, (int)(i / 4), found, sum);
            }
        }
    }
}
