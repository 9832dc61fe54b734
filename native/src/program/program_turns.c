/*
 * In which order a rank asks for what it receives in stages 1 and 2: first what its own buckets wait for, so that it is
 * handed on while the rest comes. Of either, bucket by bucket, the channel that has come least far first; of several
 * the one whose turn it is by the planner, or, of what nothing waits for, the one of the earliest wave
 * (docs/adr/0011-schedule.md, docs/adr/0032-stages-overlap.md). No lock is needed.
 */
#include <stdlib.h>

#include "base/error.h"
#include "program/program.h"

typedef struct turn {
    uint32_t channel, place;
    bool awaited;
    uint32_t sequence, count; /* the channel's buckets that are awaited, or those that are not */
} turn;

static int by_progress(const void *one, const void *other) {
    const turn *a = one, *b = other;
    if (a->awaited != b->awaited) {
        return a->awaited ? -1 : 1;
    }
    uint64_t left = (uint64_t)a->sequence * b->count;
    uint64_t right = (uint64_t)b->sequence * a->count;
    if (left != right) {
        return left < right ? -1 : 1;
    }
    if (a->place != b->place) {
        return a->place < b->place ? -1 : 1;
    }
    return a->channel < b->channel ? -1 : a->channel > b->channel; /* channels stand in the order of the waves */
}

/* The buckets of a channel up to the last one that another waits for: grants count up, so those before it come too. */
static uint32_t awaited_buckets(const tb_program *program, const tb_channel *channel) {
    uint32_t count = channel->bucket_count;
    while (count > 0) {
        uint32_t last = channel->first_bucket + count - 1;
        if (program->first_dependent[last + 1] > program->first_dependent[last]) {
            break;
        }
        count--;
    }
    return count;
}

static void list_turns(const tb_program *program, uint8_t stage, turn *turns) {
    uint64_t filled = 0;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        if (channel->stage != stage || channel->direction != TB_RECEIVE) {
            continue;
        }
        uint32_t awaited = awaited_buckets(program, channel);
        for (uint32_t b = 0; b < channel->bucket_count; b++) {
            turns[filled++] = b < awaited ? (turn){i, channel->turn, true, b, awaited}
                                          : (turn){i, 0, false, b - awaited, channel->bucket_count - awaited};
        }
    }
}

static int32_t order_stage(tb_program *program, uint8_t stage, tb_error *err) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        total += channel->stage == stage && channel->direction == TB_RECEIVE ? channel->bucket_count : 0;
    }
    if (total == 0) {
        return TB_OK;
    }
    turn *turns = calloc(total, sizeof *turns);
    uint32_t *order = calloc(total, sizeof *order);
    if (turns == NULL || order == NULL) {
        free(turns);
        free(order);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for tables of a program");
    }
    list_turns(program, stage, turns);
    qsort(turns, total, sizeof *turns, by_progress);
    for (uint64_t i = 0; i < total; i++) {
        order[i] = turns[i].channel;
    }
    free(turns);
    program->turns[stage] = order;
    program->turn_count[stage] = (uint32_t)total; /* no more than there are buckets */
    return TB_OK;
}

int32_t tb_program_order_turns(tb_program *program, tb_error *err) {
    int32_t code = TB_OK;
    for (uint8_t stage = 1; stage < TB_STAGES && code == TB_OK; stage++) {
        code = order_stage(program, stage, err);
    }
    return code;
}
