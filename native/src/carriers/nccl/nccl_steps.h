/*
 * The rounds of a transfer whose buckets travel by NCCL, as steps that are known at prepare. Both ends of a bucket
 * give it the same step, (wave, sequence within the channel), and every rank takes its steps in that order: whoever
 * is in the lowest one has all its partners there, or on their way to it.
 *
 * A step packs what does not go as it lies, sends and receives in one group, and unpacks. Contributions come into
 * memory of their own and are folded, in the order of the folds, when all of them are here. Where everything lies is
 * decided here, once: a round computes no address.
 *
 * Some channels of a rank may be moved by others (carrier.h): then the transfer is mixed. Its steps are those of NCCL's
 * channels alone, with the same numbers; what is copied within the rank and folded is the engine's, which also says
 * when what a step sends is there.
 */
#ifndef TB_NCCL_STEPS_H
#define TB_NCCL_STEPS_H

#include "cuda/cuda_moves.h"
#include "round/thread.h"

/* One end of a bucket in a group. */
typedef struct tb_nccl_op {
    uint32_t bucket;
    int32_t peer; /* rank of the session */
    uint64_t address, bytes;
    bool sends;
} tb_nccl_op;

typedef struct tb_nccl_step {
    uint32_t first_op, op_count;
    /* Groups of the moves; count 0 or 1 but for folds, which follow one another. */
    uint32_t pack, pack_count, unpack, unpack_count;
    uint32_t first_local, local_count; /* in locals: buckets that are here once the step is over */
    bool waits;                        /* what it packs or sends may be the outcome of what came before */
} tb_nccl_step;

typedef struct tb_nccl_steps {
    tb_nccl_op *ops;
    uint32_t op_count;
    uint32_t *locals;
    tb_nccl_step *steps; /* the first has what waits for nothing and meets nobody */
    uint32_t step_count;
    uint32_t depth; /* steps under way at once: 1 or 2 */
    bool mixed;
    uint32_t *fold_of; /* mixed, by bucket: the group that folds a contribution which came */
    tb_cuda_moves moves;
    uint64_t device_bytes; /* staging, contributions and reduced pieces, in one allocation */
    uint64_t contributions_at, pool_at, staging_at; /* offsets in it */
    uint64_t stage_at[2][2]; /* from staging_at on: of steps with an even and an odd number, receiving and sending */
    uint32_t fold_step;      /* TB_NONE: there is none */
    /* In memory of the device, filled by its thread. */
    uint64_t memory;
    bool uploaded;
} tb_nccl_steps;

/* The steps, and how much memory of the device they take. elsewhere: by channel, those that others move; NULL: none. */
int32_t tb_nccl_steps_plan(const tb_program *program, const bool *elsewhere, tb_nccl_steps *plan, tb_error *err);
/*
 * Fills the addresses in, once, for memory of device_bytes, and makes the moves. pool: where pieces lie if it is mixed.
 */
int32_t tb_nccl_steps_place(const tb_program *program, const tb_binding *bindings, const tb_pool *pool, uint64_t memory,
                            tb_nccl_steps *plan, tb_error *err);
void tb_nccl_steps_free(tb_nccl_steps *plan);

#endif
