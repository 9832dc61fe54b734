/*
 * A session's part of a GPU: what its tensors, its pool and its tables of moves take there, and the buckets
 * that are moved there, taken by the device's worker as many at a time as wait. Calls block while the worker
 * answers, and are made without the session's lock, since the worker takes it when a bucket has come.
 */
#ifndef TB_DEVICE_H
#define TB_DEVICE_H

#include "round/carrier.h"
#include "cuda/cuda_moves.h"

/* The devices of CUDA, as a session asks for them. */
extern const tb_device_kind tb_devices_cuda;

tb_cuda_worker *tb_device_worker(const tb_device *device);

/* How peers reach memory of the device. TB_EREGION if it is none, or not the device's. */
int32_t tb_device_describe(tb_device *device, uint64_t address, uint64_t bytes, tb_device_memory *memory,
                           tb_error *err);
int32_t tb_device_allocate(tb_device *device, uint64_t bytes, uint64_t *address, tb_error *err);
void tb_device_free(tb_device *device, uint64_t address);

/* Takes no more asks, and puts the table into the device's memory. */
int32_t tb_device_load(tb_device *device, tb_cuda_moves *moves, uint32_t group_count, tb_error *err);
/* Frees it, there and here. */
void tb_device_unload(tb_device *device, tb_cuda_moves *moves);
/* Moves a group for a pull, and ends it. */
void tb_device_submit(tb_device *device, tb_pull *pull, const tb_cuda_moves *moves, uint32_t group);
/*
 * The same; `then` is called before the pull is ended, however it went: nothing is moved for it any more. From any
 * thread.
 */
void tb_device_submit_then(tb_device *device, tb_pull *pull, const tb_cuda_moves *moves, uint32_t group,
                           void (*then)(void *argument), void *argument);

/* Makes the device's context that of the calling thread, for a library that looks for it there. */
int32_t tb_device_make_current(const tb_device *device, tb_error *err);

/* ---- device_transfer.c --------------------------------------------------------------------------------- */

/* The pool, and the table of what a transfer moves from this rank to itself. */
int32_t tb_device_transfer_allocate(tb_transfer *transfer, tb_error *err);
void tb_device_transfer_free(tb_transfer *transfer);
/*
 * What a chunk of a program becomes in a table: its destination is this rank's; source and its descriptor are
 * the caller's.
 */
int32_t tb_device_add_chunk(const tb_transfer *transfer, tb_cuda_moves *moves, uint32_t group,
                            const tb_chunk *chunk, const tb_cuda_place *source, tb_error *err);
void tb_device_piece_words(const tb_piece *piece, int64_t words[TB_PIECE_WORDS]);

#endif
