/*
 * Moves on a GPU, prepared once and made many times: descriptors of two ends become rows of a table in device
 * memory (native/cuda/table.h), and a range of groups, of buckets, becomes one launch for each kernel among
 * them. Two ends need not be cut alike: they are taken apart into the loops that both have.
 */
#ifndef TB_CUDA_MOVES_H
#define TB_CUDA_MOVES_H

#include "../cuda/table.h"
#include "cuda/cuda_worker.h"

/* Elements in memory of the device. */
typedef struct tb_cuda_place {
    uint64_t address;          /* the address of the tensor's first element */
    const int64_t *descriptor; /* checked: docs/program-format.md */
    uint32_t dtype;
} tb_cuda_place;

/* A copy or cast; or, with fold, a contribution of source.dtype to packed accumulators at the destination. */
typedef struct tb_cuda_ask {
    uint32_t group;
    tb_cuda_place destination, source;
    bool fold, first, last;
    uint32_t partial_op;
    uint64_t divide_by; /* what the last contribution divides by */
} tb_cuda_ask;

/* A contiguous piece that is worth a call of its own to the copy engine. */
typedef struct tb_cuda_row {
    uint64_t destination, source, bytes;
    uint32_t group;
} tb_cuda_row;

typedef struct tb_cuda_row_of_kernel {
    tb_cuda_move move;
    uint32_t kernel, group, order;
} tb_cuda_row_of_kernel;

typedef struct tb_cuda_moves {
    tb_cuda_row_of_kernel *asked; /* until they are sorted */
    tb_cuda_move *moves;
    uint32_t move_count, move_room;
    tb_cuda_loop *loops;
    uint32_t loop_count, loop_room;
    tb_cuda_row *rows;
    uint32_t row_count, row_room;
    uint32_t group_count;
    /* By kernel, then for each group and one past the last: its first move. NULL if the kernel has none.
     */
    uint32_t *first_of[TB_CUDA_KERNEL_COUNT];
    uint32_t *first_row;                 /* the same of rows */
    uint64_t device_moves, device_loops; /* addresses; 0: not uploaded */
    uint64_t device_bytes;
} tb_cuda_moves;

/* Zero is an empty list. Asks come in any order. TB_ENO_MEMORY, TB_EUNSUPPORTED if there are too many. */
int32_t tb_cuda_moves_add(tb_cuda_moves *moves, const tb_cuda_ask *ask, tb_error *err);
/* No more are added. Groups are 0 to group_count - 1. */
int32_t tb_cuda_moves_sort(tb_cuda_moves *moves, uint32_t group_count, tb_error *err);
void tb_cuda_moves_free(tb_cuda_moves *moves);

/* In the worker's thread. */
int32_t tb_cuda_moves_upload(tb_cuda_moves *moves, tb_cuda_worker *worker, tb_error *err);
void tb_cuda_moves_unload(tb_cuda_moves *moves, tb_cuda_worker *worker);
/* Puts all moves of these groups into the stream. They may not wait for one another. */
int32_t tb_cuda_moves_launch(const tb_cuda_moves *moves, tb_cuda_worker *worker, uint32_t first_group,
                             uint32_t group_count, tb_cu_stream stream, tb_error *err);

/* Exported for tests. */
tb_divisor tb_divisor_of(uint32_t number);

#endif
