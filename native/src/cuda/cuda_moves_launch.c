/*
 * The table of a list of moves: sorted by kernel and group, in device memory, and launched from there. No lock is
 * needed: what touches the device runs in its worker's thread.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_moves.h"
#include "base/error.h"

/* ---- by kernel and group
 * ---------------------------------------------------------------------------------------- */

static int compare_moves(const void *a, const void *b) {
    const tb_cuda_row_of_kernel *x = a;
    const tb_cuda_row_of_kernel *y = b;
    if (x->kernel != y->kernel) {
        return x->kernel < y->kernel ? -1 : 1;
    }
    if (x->group != y->group) {
        return x->group < y->group ? -1 : 1;
    }
    return x->order < y->order ? -1 : x->order > y->order;
}

static int compare_rows(const void *a, const void *b) {
    const tb_cuda_row *x = a;
    const tb_cuda_row *y = b;
    if (x->group != y->group) {
        return x->group < y->group ? -1 : 1;
    }
    return x->destination < y->destination ? -1 : x->destination > y->destination;
}

/* first[group] of the part of the list from `at` on that has this kernel; gives its end. */
static uint32_t index_kernel(tb_cuda_moves *moves, uint32_t kernel, uint32_t at) {
    uint32_t *first = moves->first_of[kernel];
    for (uint32_t group = 0; group <= moves->group_count; group++) {
        while (at < moves->move_count && moves->asked[at].kernel == kernel
               && moves->asked[at].group < group) {
            at++;
        }
        first[group] = at;
    }
    return at;
}

static int32_t index_kernels(tb_cuda_moves *moves, tb_error *err) {
    for (uint32_t at = 0; at < moves->move_count;) {
        uint32_t kernel = moves->asked[at].kernel;
        moves->first_of[kernel] = calloc((size_t)moves->group_count + 1, sizeof(uint32_t));
        if (moves->first_of[kernel] == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for an index of %u groups", moves->group_count);
        }
        at = index_kernel(moves, kernel, at);
    }
    return TB_OK;
}

static void index_rows(tb_cuda_moves *moves) {
    uint32_t at = 0;
    for (uint32_t group = 0; group <= moves->group_count; group++) {
        while (at < moves->row_count && moves->rows[at].group < group) {
            at++;
        }
        moves->first_row[group] = at;
    }
}

static int32_t number_tiles(tb_cuda_moves *moves, tb_error *err) {
    uint64_t tile = 0;
    for (uint32_t i = 0; i < moves->move_count; i++) {
        tb_cuda_move *move = &moves->moves[i];
        *move = moves->asked[i].move;
        move->first_tile = (uint32_t)tile;
        tile += ((uint64_t)move->lanes + TB_CUDA_TILE - 1) / TB_CUDA_TILE;
        if (tile > INT32_MAX) {
            return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the moves have more than %d tiles", INT32_MAX);
        }
    }
    moves->moves[moves->move_count] = (tb_cuda_move){.first_tile = (uint32_t)tile};
    return TB_OK;
}

int32_t tb_cuda_moves_sort(tb_cuda_moves *moves, uint32_t group_count, tb_error *err) {
    moves->group_count = group_count;
    moves->moves = calloc((size_t)moves->move_count + 1, sizeof *moves->moves);
    moves->first_row = calloc((size_t)group_count + 1, sizeof *moves->first_row);
    if (moves->moves == NULL || moves->first_row == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a table of %u moves", moves->move_count);
    }
    if (moves->move_count > 0) {
        qsort(moves->asked, moves->move_count, sizeof *moves->asked, compare_moves);
    }
    if (moves->row_count > 0) {
        qsort(moves->rows, moves->row_count, sizeof *moves->rows, compare_rows);
    }
    index_rows(moves);
    int32_t code = index_kernels(moves, err);
    if (code == TB_OK) {
        code = number_tiles(moves, err);
    }
    free(moves->asked);
    moves->asked = NULL;
    return code;
}

void tb_cuda_moves_free(tb_cuda_moves *moves) {
    for (int kernel = 0; kernel < TB_CUDA_KERNEL_COUNT; kernel++) {
        free(moves->first_of[kernel]);
    }
    free(moves->asked);
    free(moves->moves);
    free(moves->loops);
    free(moves->rows);
    free(moves->first_row);
    memset(moves, 0, sizeof *moves);
}

/* ---- in the worker's thread
 * ---------------------------------------------------------------------------------------- */

int32_t tb_cuda_moves_upload(tb_cuda_moves *moves, tb_cuda_worker *worker, tb_error *err) {
    const tb_cuda_api *api = worker->api;
    uint64_t move_bytes = moves->move_count * sizeof *moves->moves;
    uint64_t loop_bytes = moves->loop_count * sizeof *moves->loops;
    if (move_bytes == 0) {
        return TB_OK;
    }
    tb_cu_pointer at = 0;
    TB_CUDA_TRY(api, cuMemAlloc_v2(&at, move_bytes + loop_bytes), err);
    moves->device_moves = at;
    moves->device_loops = at + move_bytes;
    moves->device_bytes = move_bytes + loop_bytes;
    TB_CUDA_TRY(api, cuMemcpyHtoD_v2(at, moves->moves, move_bytes), err);
    if (loop_bytes > 0) {
        TB_CUDA_TRY(api, cuMemcpyHtoD_v2(at + move_bytes, moves->loops, loop_bytes), err);
    }
    return TB_OK;
}

void tb_cuda_moves_unload(tb_cuda_moves *moves, tb_cuda_worker *worker) {
    if (moves->device_moves != 0) {
        tb_cuda_worker_free(worker, moves->device_moves, NULL);
    }
    moves->device_moves = 0;
}

static int32_t launch_rows(const tb_cuda_moves *moves, tb_cuda_worker *worker, uint32_t first, uint32_t end,
                           tb_cu_stream stream, tb_error *err) {
    for (uint32_t i = first; i < end;) {
        tb_cuda_row row = moves->rows[i++];
        /* Buckets of one tensor lie one after the other. */
        while (i < end && moves->rows[i].destination == row.destination + row.bytes
               && moves->rows[i].source == row.source + row.bytes) {
            row.bytes += moves->rows[i++].bytes;
        }
        TB_CUDA_TRY(worker->api, cuMemcpyDtoDAsync_v2(row.destination, row.source, row.bytes, stream), err);
    }
    return TB_OK;
}

static int32_t launch_kernel(const tb_cuda_moves *moves, tb_cuda_worker *worker, uint32_t kernel,
                             uint32_t first, uint32_t end, tb_cu_stream stream, tb_error *err) {
    tb_cuda_launch launch = {
        .moves = moves->device_moves,
        .loops = moves->device_loops,
        .first_move = first,
        .move_count = end - first,
        .first_tile = moves->moves[first].first_tile,
        .tile_count = moves->moves[end].first_tile - moves->moves[first].first_tile,
    };
    return tb_cuda_worker_launch(worker, kernel, launch.tile_count, &launch, sizeof launch, stream, err);
}

int32_t tb_cuda_moves_launch(const tb_cuda_moves *moves, tb_cuda_worker *worker, uint32_t first_group,
                             uint32_t group_count, tb_cu_stream stream, tb_error *err) {
    uint32_t end_group = first_group + group_count;
    int32_t code =
        launch_rows(moves, worker, moves->first_row[first_group], moves->first_row[end_group], stream, err);
    for (uint32_t kernel = 0; kernel < TB_CUDA_KERNEL_COUNT && code == TB_OK; kernel++) {
        const uint32_t *first = moves->first_of[kernel];
        if (first != NULL && first[first_group] < first[end_group]) {
            code = launch_kernel(moves, worker, kernel, first[first_group], first[end_group], stream, err);
        }
    }
    return code;
}
