/* What the planning of steps (nccl_steps.c) and the placing of their memory (nccl_steps_place.c) share. */
#ifndef TB_NCCL_STEPS_PARTS_H
#define TB_NCCL_STEPS_PARTS_H

#include "kernels/cursor.h"
#include "base/error.h"
#include "carriers/nccl/nccl_steps.h"
#include "kernels/dtype.h"

/* The alignment of chunks in a bucket. */
#define TB_NCCL_STEPS_PADDING 16u
/* The alignment of what NCCL reads and writes: it is fastest on lines that begin evenly. */
#define TB_NCCL_STEPS_ALIGNMENT 256u

static inline uint64_t tb_aligned(uint64_t bytes, uint64_t to) {
    return (bytes + to - 1) / to * to;
}

static inline int32_t tb_nccl_steps_no_memory(tb_error *err) {
    return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for the steps of a program");
}

static inline const tb_chunk *tb_only_chunk(const tb_program *program, uint32_t bucket) {
    const tb_bucket *row = &program->buckets[bucket];
    return row->chunk_count == 1 ? &program->chunks[row->first_chunk] : NULL;
}

/* Its bytes lie in one row as they travel. */
static inline bool tb_lies_ready(const tb_program *program, uint32_t bucket, bool sends) {
    const tb_chunk *chunk = tb_only_chunk(program, bucket);
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

#endif
