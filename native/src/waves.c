#include "waves.h"

#include <stdlib.h>
#include <string.h>

#include "cursor.h"
#include "error.h"

#define PADDING 16u
/* Of what NCCL reads and writes: it is fastest on lines that begin evenly. */
#define ALIGNMENT 256u

static uint64_t aligned(uint64_t bytes, uint64_t to) {
    return (bytes + to - 1) / to * to;
}

static int32_t no_memory(tb_error *err) {
    return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the steps of a program");
}

/* ---- order --------------------------------------------------------------------------------------------- */

/* When a bucket has its turn; the same number at both of its ends. */
typedef struct turn {
    uint32_t wave, part; /* part: of the channel, so many buckets a step */
    uint32_t bucket;
} turn;

static int compare_turns(const void *a, const void *b) {
    const turn *x = a;
    const turn *y = b;
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

static bool is_contribution(const tb_program *program, uint32_t bucket) {
    const tb_channel *channel = tb_bucket_channel(program, bucket);
    return channel->stage == 0 && channel->direction != TB_SEND;
}

/* Buckets in the order of their turns, less own contributions, which are folded and no more. */
static turn *order_turns(const tb_program *program, uint32_t *count) {
    turn *turns = calloc((size_t)program->header->bucket_count + 1, sizeof *turns);
    *count = 0;
    for (uint32_t b = 0; turns != NULL && b < program->header->bucket_count; b++) {
        const tb_channel *channel = tb_bucket_channel(program, b);
        bool own = channel->direction == TB_LOCAL;
        if (own && channel->stage == 0) {
            continue;
        }
        /* What is copied here has no other end to agree with: all of it with the first part of its wave. */
        uint32_t part = own ? 0 : tb_bucket_sequence(program, b) / buckets_a_step(program);
        turns[(*count)++] = (turn){channel->wave, part, b};
    }
    if (turns != NULL && *count > 0) {
        qsort(turns, *count, sizeof *turns, compare_turns);
    }
    return turns;
}

/* ---- steps --------------------------------------------------------------------------------------------- */

typedef struct planner {
    const tb_program *program;
    tb_waves *waves;
    uint32_t local_count;
    uint32_t groups;
    uint64_t contributions;
    uint64_t staged[2][2]; /* the most of steps with an even and an odd number, receiving and sending */
} planner;

static const tb_chunk *only_chunk(const tb_program *program, uint32_t bucket) {
    const tb_bucket *row = &program->buckets[bucket];
    return row->chunk_count == 1 ? &program->chunks[row->first_chunk] : NULL;
}

/* Its bytes lie in one row as they travel. */
static bool lies_ready(const tb_program *program, uint32_t bucket, bool sends) {
    const tb_chunk *chunk = only_chunk(program, bucket);
    if (chunk == NULL) {
        return false;
    }
    uint32_t end = sends ? chunk->source : chunk->destination;
    uint32_t dtype = sends ? chunk->source_dtype : chunk->destination_dtype;
    if (dtype != chunk->wire_dtype) {
        return false;
    }
    if (end >= TB_PIECE_BIT) {
        return sends && tb_accumulator_size(dtype) == tb_dtype_size(dtype);
    }
    return program->words[(sends ? chunk->source_descriptor : chunk->destination_descriptor) + 1] == 0;
}

static void add_op(planner *at, tb_wave_step *step, uint32_t bucket, uint64_t staged[2]) {
    const tb_program *program = at->program;
    const tb_channel *channel = tb_bucket_channel(program, bucket);
    bool sends = channel->direction == TB_SEND;
    tb_wave_op *op = &at->waves->ops[at->waves->op_count++];
    *op = (tb_wave_op){.bucket = bucket,
                       .peer = (int32_t)channel->peer,
                       .bytes = program->buckets[bucket].bytes,
                       .sends = sends};
    step->op_count++;
    if (is_contribution(program, bucket)) {
        op->address = at->contributions;
        at->contributions += aligned(op->bytes, ALIGNMENT);
    } else if (!lies_ready(program, bucket, sends)) {
        op->address = staged[sends];
        staged[sends] += aligned(op->bytes, ALIGNMENT);
        *(sends ? &step->pack_count : &step->unpack_count) = 1;
    }
    step->waits |= sends && program->buckets[bucket].dependency_count > 0;
}

static void add_local(planner *at, tb_wave_step *step, uint32_t bucket) {
    at->waves->locals[at->local_count++] = bucket;
    step->local_count++;
    step->unpack_count = 1;
}

static tb_wave_step *new_step(planner *at) {
    tb_wave_step *step = &at->waves->steps[at->waves->step_count++];
    step->first_op = at->waves->op_count;
    step->first_local = at->local_count;
    return step;
}

static void number_groups(planner *at, tb_wave_step *step) {
    step->pack = at->groups;
    at->groups += step->pack_count;
    step->unpack = at->groups;
    at->groups += step->unpack_count;
}

static void end_step(planner *at, tb_wave_step *step, const uint64_t staged[2]) {
    uint32_t odd = (at->waves->step_count - 1) % at->waves->depth;
    for (int sends = 0; sends < 2; sends++) {
        uint64_t *most = &at->staged[odd][sends];
        *most = staged[sends] > *most ? staged[sends] : *most;
    }
    number_groups(at, step);
}

/* Copies that wait for nothing: they begin before anybody else has. */
static void add_first(planner *at, const turn *turns, uint32_t count) {
    tb_wave_step *step = new_step(at);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bucket = turns[i].bucket;
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
    if (program->fold_count == 0) {
        return;
    }
    at->waves->fold_step = at->waves->step_count;
    tb_wave_step *step = new_step(at);
    for (uint32_t i = 0; i < program->fold_count; i++) {
        uint32_t bucket = program->fold_order[i];
        uint32_t position = program->chunks[program->buckets[bucket].first_chunk].fold_position;
        step->unpack_count = position + 1 > step->unpack_count ? position + 1 : step->unpack_count;
        if (tb_bucket_channel(program, bucket)->direction == TB_LOCAL) {
            at->waves->locals[at->local_count++] = bucket;
            step->local_count++;
        }
    }
    end_step(at, step, (uint64_t[2]){0, 0});
}

static void add_turns(planner *at, const turn *turns, uint32_t count) {
    const tb_program *program = at->program;
    bool folded = false;
    for (uint32_t i = 0; i < count;) {
        bool later = tb_bucket_channel(program, turns[i].bucket)->stage > 0;
        if (later && !folded) {
            add_folds(at); /* the waves of stage 0 come before all others */
            folded = true;
        }
        uint64_t staged[2] = {0, 0};
        tb_wave_step *step = new_step(at);
        uint32_t first = i;
        for (; i < count && turns[i].wave == turns[first].wave && turns[i].part == turns[first].part; i++) {
            uint32_t bucket = turns[i].bucket;
            if (tb_bucket_channel(program, bucket)->direction != TB_LOCAL) {
                add_op(at, step, bucket, staged);
            } else if (program->buckets[bucket].dependency_count > 0) {
                add_local(at, step, bucket);
            }
        }
        if (step->op_count == 0 && step->local_count == 0) {
            at->waves->step_count--;
            continue;
        }
        end_step(at, step, staged);
    }
    if (!folded) {
        add_folds(at);
    }
}

int32_t tb_waves_plan(const tb_program *program, tb_waves *waves, tb_error *err) {
    planner at = {.program = program, .waves = waves};
    size_t buckets = program->header->bucket_count;
    uint32_t count;
    turn *turns = order_turns(program, &count);
    waves->fold_step = TB_NONE;
    waves->depth = program->header->buckets_in_flight < 2 ? 1 : 2;
    waves->ops = calloc(buckets + 1, sizeof *waves->ops);
    waves->locals = calloc(buckets + 1, sizeof *waves->locals);
    waves->steps = calloc(buckets + 3, sizeof *waves->steps);
    if (turns == NULL || waves->ops == NULL || waves->locals == NULL || waves->steps == NULL) {
        free(turns);
        return no_memory(err);
    }
    add_first(&at, turns, count);
    add_turns(&at, turns, count);
    free(turns);
    uint64_t pool = 0;
    for (uint32_t piece = 0; piece < program->header->piece_count; piece++) {
        pool += aligned(program->pieces[piece].pool_bytes, ALIGNMENT);
    }
    waves->contributions_at = 0;
    waves->pool_at = at.contributions;
    waves->staging_at = waves->pool_at + pool;
    waves->device_bytes = waves->staging_at;
    for (int odd = 0; odd < 2; odd++) {
        for (int sends = 0; sends < 2; sends++) {
            waves->stage_at[odd][sends] = waves->device_bytes - waves->staging_at;
            waves->device_bytes += at.staged[odd][sends];
        }
    }
    waves->moves.group_count = at.groups;
    return TB_OK;
}

/* ---- places -------------------------------------------------------------------------------------------- */

typedef struct placer {
    const tb_program *program;
    const tb_binding *bindings;
    tb_waves *waves;
    uint64_t *pieces; /* addresses */
    tb_error *err;
} placer;

/* A descriptor of one row, or of what was folded: each element at the beginning of its accumulator. */
typedef struct packed {
    int64_t words[5];
} packed;

static packed one_row(uint64_t bytes) {
    return (packed){{0, 0, (int64_t)bytes}};
}

static packed of_piece(const tb_chunk *chunk) {
    int64_t size = tb_dtype_size(chunk->source_dtype);
    int64_t step = tb_accumulator_size(chunk->source_dtype);
    if (size == step) {
        return one_row(chunk->elements * (uint64_t)size);
    }
    return (packed){{0, 1, (int64_t)chunk->elements, step, size}};
}

/* The end of a chunk that lies in a tensor or in a piece. */
static tb_cuda_place place_of(const placer *at, const tb_chunk *chunk, bool destination, packed *row) {
    uint32_t where = destination ? chunk->destination : chunk->source;
    uint32_t dtype = destination ? chunk->destination_dtype : chunk->source_dtype;
    if (where >= TB_PIECE_BIT) {
        *row = destination ? one_row(chunk->elements * tb_accumulator_size(dtype)) : of_piece(chunk);
        return (tb_cuda_place){at->pieces[where - TB_PIECE_BIT], row->words, dtype};
    }
    uint32_t descriptor = destination ? chunk->destination_descriptor : chunk->source_descriptor;
    return (tb_cuda_place){at->bindings[where].address, at->program->words + descriptor, dtype};
}

static int32_t add_fold(const placer *at, const tb_chunk *chunk, tb_cuda_place source, uint32_t group) {
    const tb_piece *piece = &at->program->pieces[chunk->destination - TB_PIECE_BIT];
    packed row = one_row(chunk->elements * tb_accumulator_size(piece->dtype));
    tb_cuda_ask ask = {
        .group = group + chunk->fold_position,
        .destination = {at->pieces[chunk->destination - TB_PIECE_BIT], row.words, piece->dtype},
        .source = source,
        .fold = true,
        .first = chunk->fold_position == 0,
        .last = chunk->fold_position == piece->contributions - 1,
        .partial_op = piece->op,
        .divide_by = piece->divisor,
    };
    return tb_cuda_moves_add(&at->waves->moves, &ask, at->err);
}

/* The chunks of a bucket between memory here and its payload, which begins at `payload`. */
static int32_t add_payload(const placer *at, uint32_t bucket, uint64_t payload, bool sends, uint32_t group) {
    const tb_bucket *row = &at->program->buckets[bucket];
    int32_t code = TB_OK;
    for (uint32_t c = row->first_chunk; c < row->first_chunk + row->chunk_count && code == TB_OK; c++) {
        const tb_chunk *chunk = &at->program->chunks[c];
        packed wire = one_row(tb_chunk_wire_bytes(chunk));
        packed own;
        tb_cuda_place there = {payload, wire.words, chunk->wire_dtype};
        if (chunk->operation == TB_OP_REDUCE && !sends) {
            code = add_fold(at, chunk, there, group);
        } else {
            tb_cuda_place here = place_of(at, chunk, !sends, &own);
            tb_cuda_ask ask = {
                .group = group, .destination = sends ? there : here, .source = sends ? here : there};
            code = tb_cuda_moves_add(&at->waves->moves, &ask, at->err);
        }
        payload += aligned(tb_chunk_wire_bytes(chunk), PADDING);
    }
    return code;
}

static int32_t add_own(const placer *at, uint32_t bucket, uint32_t group) {
    const tb_bucket *row = &at->program->buckets[bucket];
    int32_t code = TB_OK;
    for (uint32_t c = row->first_chunk; c < row->first_chunk + row->chunk_count && code == TB_OK; c++) {
        const tb_chunk *chunk = &at->program->chunks[c];
        packed from;
        packed to;
        tb_cuda_place source = place_of(at, chunk, false, &from);
        if (chunk->operation == TB_OP_REDUCE) {
            code = add_fold(at, chunk, source, group);
            continue;
        }
        tb_cuda_ask ask = {.group = group, .destination = place_of(at, chunk, true, &to), .source = source};
        bool nothing = ask.destination.address == source.address && ask.destination.dtype == source.dtype
                       && ask.destination.descriptor[0] == source.descriptor[0];
        code = nothing ? TB_OK : tb_cuda_moves_add(&at->waves->moves, &ask, at->err);
    }
    return code;
}

static uint64_t direct_address(const placer *at, uint32_t bucket, bool sends) {
    packed row;
    tb_cuda_place place = place_of(at, only_chunk(at->program, bucket), !sends, &row);
    return place.address + (uint64_t)place.descriptor[0];
}

static int32_t place_step(const placer *at, uint32_t index) {
    tb_waves *waves = at->waves;
    const tb_wave_step *step = &waves->steps[index];
    int32_t code = TB_OK;
    for (uint32_t i = step->first_op; i < step->first_op + step->op_count && code == TB_OK; i++) {
        tb_wave_op *op = &waves->ops[i];
        if (is_contribution(at->program, op->bucket)) {
            op->address += waves->memory + waves->contributions_at;
        } else if (lies_ready(at->program, op->bucket, op->sends)) {
            op->address = direct_address(at, op->bucket, op->sends);
        } else {
            op->address += waves->memory + waves->staging_at + waves->stage_at[index % waves->depth][op->sends];
            code = add_payload(at, op->bucket, op->address, op->sends, op->sends ? step->pack : step->unpack);
        }
    }
    for (uint32_t i = step->first_local; i < step->first_local + step->local_count && code == TB_OK; i++) {
        code = add_own(at, waves->locals[i], step->unpack);
    }
    return code;
}

/* Contributions of others, out of the memory that they came into, with the step that folds. */
static int32_t place_folds(const placer *at) {
    const tb_waves *waves = at->waves;
    int32_t code = TB_OK;
    for (uint32_t i = 0; i < waves->op_count && code == TB_OK; i++) {
        const tb_wave_op *op = &waves->ops[i];
        if (is_contribution(at->program, op->bucket)) {
            code = add_payload(at, op->bucket, op->address, false, waves->steps[waves->fold_step].unpack);
        }
    }
    return code;
}

int32_t tb_waves_place(const tb_program *program, const tb_binding *bindings, uint64_t memory, tb_waves *waves,
                       tb_error *err) {
    placer at = {.program = program, .bindings = bindings, .waves = waves, .err = err};
    uint32_t groups = waves->moves.group_count;
    at.pieces = calloc((size_t)program->header->piece_count + 1, sizeof *at.pieces);
    if (at.pieces == NULL) {
        return no_memory(err);
    }
    waves->memory = memory;
    uint64_t next = memory + waves->pool_at;
    for (uint32_t piece = 0; piece < program->header->piece_count; piece++) {
        at.pieces[piece] = next;
        next += aligned(program->pieces[piece].pool_bytes, ALIGNMENT);
    }
    int32_t code = TB_OK;
    for (uint32_t step = 0; step < waves->step_count && code == TB_OK; step++) {
        code = place_step(&at, step);
    }
    if (code == TB_OK) {
        code = place_folds(&at);
    }
    if (code == TB_OK) {
        code = tb_cuda_moves_sort(&waves->moves, groups, err);
    }
    free(at.pieces);
    return code;
}

void tb_waves_free(tb_waves *waves) {
    if (waves != NULL) {
        tb_cuda_moves_free(&waves->moves);
        free(waves->steps);
        free(waves->locals);
        free(waves->ops);
        free(waves);
    }
}
