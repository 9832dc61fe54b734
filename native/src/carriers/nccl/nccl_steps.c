/*
 * Planning steps: which buckets meet in which one, and how much memory each takes. At prepare, without the session's
 * lock.
 */
#include "carriers/nccl/nccl_steps.h"

#include <stdlib.h>

#include "base/error.h"
#include "carriers/nccl/nccl_steps_parts.h"

/* ---- order --------------------------------------------------------------------------------------------- */

/* A bucket's position in the order of steps; the same at both of its ends. */
typedef struct position {
    uint32_t wave, part; /* part: of the channel, so many buckets a step */
    uint32_t bucket;
} position;

static int compare_positions(const void *a, const void *b) {
    const position *x = a;
    const position *y = b;
    if (x->wave != y->wave) {
        return x->wave < y->wave ? -1 : 1;
    }
    if (x->part != y->part) {
        return x->part < y->part ? -1 : 1;
    }
    return x->bucket < y->bucket ? -1 : x->bucket > y->bucket;
}

/* With two steps under way a channel has no more buckets staged than the plan allows it. */
static uint32_t buckets_a_step(const tb_program *program) {
    uint32_t in_flight = program->header->buckets_in_flight;
    return in_flight < 2 ? 1 : in_flight / 2;
}

/*
 * Buckets in the order of their steps, less own contributions, which are folded and no more, and less all that others
 * move.
 */
static position *order_buckets(const tb_program *program, const bool *elsewhere, uint32_t *count) {
    position *positions = calloc((size_t)program->header->bucket_count + 1, sizeof *positions);
    *count = 0;
    for (uint32_t b = 0; positions != NULL && b < program->header->bucket_count; b++) {
        const tb_channel *channel = tb_bucket_channel(program, b);
        bool own = channel->direction == TB_LOCAL;
        if ((own && channel->stage == 0) || (elsewhere != NULL && elsewhere[program->buckets[b].channel])) {
            continue;
        }
        /* What is copied here has no other end to agree with: all of it with the first part of its wave. */
        uint32_t part = own ? 0 : tb_bucket_sequence(program, b) / buckets_a_step(program);
        positions[(*count)++] = (position){channel->wave, part, b};
    }
    if (positions != NULL && *count > 0) {
        qsort(positions, *count, sizeof *positions, compare_positions);
    }
    return positions;
}

/* ---- steps --------------------------------------------------------------------------------------------- */

typedef struct planner {
    const tb_program *program;
    tb_nccl_steps *plan;
    uint32_t local_count;
    uint32_t groups;
    uint64_t contributions;
    uint64_t staged[2][2]; /* the most of steps with an even and an odd number, receiving and sending */
} planner;

static void add_op(planner *at, tb_nccl_step *step, uint32_t bucket, uint64_t staged[2]) {
    const tb_program *program = at->program;
    const tb_channel *channel = tb_bucket_channel(program, bucket);
    bool sends = channel->direction == TB_SEND;
    tb_nccl_op *op = &at->plan->ops[at->plan->op_count++];
    *op = (tb_nccl_op){.bucket = bucket,
                       .peer = (int32_t)channel->peer,
                       .bytes = program->buckets[bucket].bytes,
                       .sends = sends};
    step->op_count++;
    if (tb_bucket_folds(program, bucket)) {
        op->address = at->contributions;
        at->contributions += tb_aligned(op->bytes, TB_NCCL_STEPS_ALIGNMENT);
        if (at->plan->mixed) {
            at->plan->fold_of[bucket] = at->groups++;
        }
    } else if (!tb_lies_ready(program, bucket, sends)) {
        op->address = staged[sends];
        staged[sends] += tb_aligned(op->bytes, TB_NCCL_STEPS_ALIGNMENT);
        *(sends ? &step->pack_count : &step->unpack_count) = 1;
    }
    step->waits |= sends && program->buckets[bucket].dependency_count > 0;
}

static void add_local(planner *at, tb_nccl_step *step, uint32_t bucket) {
    at->plan->locals[at->local_count++] = bucket;
    step->local_count++;
    step->unpack_count = 1;
}

static tb_nccl_step *new_step(planner *at) {
    tb_nccl_step *step = &at->plan->steps[at->plan->step_count++];
    step->first_op = at->plan->op_count;
    step->first_local = at->local_count;
    return step;
}

static void number_groups(planner *at, tb_nccl_step *step) {
    step->pack = at->groups;
    at->groups += step->pack_count;
    step->unpack = at->groups;
    at->groups += step->unpack_count;
}

static void end_step(planner *at, tb_nccl_step *step, const uint64_t staged[2]) {
    uint32_t odd = (at->plan->step_count - 1) % at->plan->depth;
    for (int sends = 0; sends < 2; sends++) {
        uint64_t *most = &at->staged[odd][sends];
        *most = staged[sends] > *most ? staged[sends] : *most;
    }
    number_groups(at, step);
}

/* Copies that wait for nothing: they begin before anybody else has. */
static void add_first(planner *at, const position *positions, uint32_t count) {
    tb_nccl_step *step = new_step(at);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bucket = positions[i].bucket;
        bool own = tb_bucket_channel(at->program, bucket)->direction == TB_LOCAL;
        if (own && at->program->buckets[bucket].dependency_count == 0) {
            add_local(at, step, bucket);
        }
    }
    end_step(at, step, (uint64_t[2]){0, 0});
}

/* Own contributions are read by the folds, and are done with them. */
static void add_folds(planner *at) {
    const tb_program *program = at->program;
    if (program->fold_count == 0 || at->plan->mixed) {
        return;
    }
    at->plan->fold_step = at->plan->step_count;
    tb_nccl_step *step = new_step(at);
    for (uint32_t i = 0; i < program->fold_count; i++) {
        uint32_t bucket = program->fold_order[i];
        uint32_t position = program->chunks[program->buckets[bucket].first_chunk].fold_position;
        step->unpack_count = position + 1 > step->unpack_count ? position + 1 : step->unpack_count;
        if (tb_bucket_channel(program, bucket)->direction == TB_LOCAL) {
            at->plan->locals[at->local_count++] = bucket;
            step->local_count++;
        }
    }
    end_step(at, step, (uint64_t[2]){0, 0});
}

static void add_steps(planner *at, const position *positions, uint32_t count) {
    const tb_program *program = at->program;
    bool folded = false;
    for (uint32_t i = 0; i < count;) {
        bool later = tb_bucket_channel(program, positions[i].bucket)->stage > 0;
        if (later && !folded) {
            add_folds(at); /* the waves of stage 0 come before all others */
            folded = true;
        }
        uint64_t staged[2] = {0, 0};
        tb_nccl_step *step = new_step(at);
        uint32_t first = i;
        for (; i < count && positions[i].wave == positions[first].wave && positions[i].part == positions[first].part;
             i++) {
            uint32_t bucket = positions[i].bucket;
            if (tb_bucket_channel(program, bucket)->direction != TB_LOCAL) {
                add_op(at, step, bucket, staged);
            } else if (program->buckets[bucket].dependency_count > 0) {
                add_local(at, step, bucket);
            }
        }
        if (step->op_count == 0 && step->local_count == 0) {
            at->plan->step_count--;
            continue;
        }
        end_step(at, step, staged);
    }
    if (!folded) {
        add_folds(at);
    }
}

/* If others move as well, reduced pieces lie in the pool of all. */
static uint64_t pool_bytes(const planner *at) {
    uint64_t pool = 0;
    for (uint32_t piece = 0; piece < at->program->header->piece_count && !at->plan->mixed; piece++) {
        pool += tb_aligned(at->program->pieces[piece].pool_bytes, TB_NCCL_STEPS_ALIGNMENT);
    }
    return pool;
}

int32_t tb_nccl_steps_plan(const tb_program *program, const bool *elsewhere, tb_nccl_steps *plan, tb_error *err) {
    planner at = {.program = program, .plan = plan};
    size_t buckets = program->header->bucket_count;
    uint32_t count;
    position *positions = order_buckets(program, elsewhere, &count);
    plan->mixed = elsewhere != NULL;
    plan->fold_step = TB_NONE;
    plan->depth = program->header->buckets_in_flight < 2 ? 1 : 2;
    plan->ops = calloc(buckets + 1, sizeof *plan->ops);
    plan->locals = calloc(buckets + 1, sizeof *plan->locals);
    plan->steps = calloc(buckets + 3, sizeof *plan->steps);
    plan->fold_of = calloc(buckets + 1, sizeof *plan->fold_of);
    if (positions == NULL || plan->ops == NULL || plan->locals == NULL || plan->steps == NULL
        || plan->fold_of == NULL) {
        free(positions);
        return tb_nccl_steps_no_memory(err);
    }
    add_first(&at, positions, count);
    add_steps(&at, positions, count);
    free(positions);
    plan->contributions_at = 0;
    plan->pool_at = at.contributions;
    plan->staging_at = plan->pool_at + pool_bytes(&at);
    plan->device_bytes = plan->staging_at;
    for (int odd = 0; odd < 2; odd++) {
        for (int sends = 0; sends < 2; sends++) {
            plan->stage_at[odd][sends] = plan->device_bytes - plan->staging_at;
            plan->device_bytes += at.staged[odd][sends];
        }
    }
    plan->moves.group_count = at.groups;
    return TB_OK;
}

void tb_nccl_steps_free(tb_nccl_steps *plan) {
    if (plan != NULL) {
        tb_cuda_moves_free(&plan->moves);
        free(plan->fold_of);
        free(plan->steps);
        free(plan->locals);
        free(plan->ops);
        free(plan);
    }
}
