/* Checks that the chunks of a program say the same as its buckets, buffers and pieces. No lock is needed. */
#include <stdbool.h>

#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "base/error.h"
#include "program/program.h"
#include "kernels/descriptor.h"

#define PADDING 16u

static int32_t malformed(tb_error *err, uint32_t chunk, const char *what) {
    return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: chunk %u %s", chunk, what);
}

/* One end of a chunk that is memory of this rank. */
typedef struct chunk_end {
    uint32_t where;
    uint32_t descriptor;
    uint8_t dtype;
    bool destination;
} chunk_end;

static int32_t check_piece_end(const tb_program *program, uint32_t index, const chunk_end *end,
                               tb_error *err) {
    const tb_chunk *chunk = &program->chunks[index];
    uint32_t number = end->where - TB_PIECE_BIT;
    if (number >= program->header->piece_count) {
        return malformed(err, index, "names a piece out of range");
    }
    const tb_piece *piece = &program->pieces[number];
    if (piece->elements != chunk->elements || piece->dtype != end->dtype) {
        return malformed(err, index, "does not fit its piece");
    }
    return TB_OK;
}

static int32_t check_buffer_end(const tb_program *program, const tb_binding *bindings, uint32_t index,
                                const chunk_end *end, uint8_t stage, tb_error *err) {
    const tb_chunk *chunk = &program->chunks[index];
    if (end->where >= program->header->buffer_count) {
        return malformed(err, index, "names a buffer out of range");
    }
    const tb_buffer *buffer = &program->buffers[end->where];
    uint8_t kind = end->destination || stage == 2 ? 1 : 0;
    if (buffer->kind != kind || buffer->dtype != end->dtype || buffer->tensor != chunk->tensor) {
        return malformed(err, index, "does not fit its buffer");
    }
    if (end->descriptor > program->header->word_count) {
        return malformed(err, index, "has a descriptor out of range");
    }
    uint64_t item = tb_dtype_size(end->dtype);
    uint64_t reach = buffer->span < bindings[end->where].bytes ? buffer->span : bindings[end->where].bytes;
    uint64_t bytes;
    uint64_t expected;
    int32_t code =
        tb_descriptor_check(program->words + end->descriptor, program->header->word_count - end->descriptor,
                            item, reach, &bytes, NULL, err);
    if (code != TB_OK) {
        return code;
    }
    if (__builtin_mul_overflow(chunk->elements, item, &expected) || expected != bytes) {
        return malformed(err, index, "has a descriptor with another number of elements");
    }
    return TB_OK;
}

static int32_t check_end(const tb_program *program, const tb_binding *bindings, uint32_t index,
                         const chunk_end *end, const tb_channel *channel, tb_error *err) {
    bool ours = channel->direction == TB_LOCAL || (channel->direction == TB_RECEIVE) == end->destination;
    if (!ours) {
        return end->where == TB_NONE ? TB_OK : malformed(err, index, "has an end that is its peer's");
    }
    if (end->where == TB_NONE) {
        return malformed(err, index, "has an end missing");
    }
    /*
     * Pieces are written in stage 0 and read in stage 1; tensors are read in every stage, and written but in
     * stage 0.
     */
    bool piece = end->where >= TB_PIECE_BIT;
    bool may_be_piece = channel->stage == (end->destination ? 0 : 1);
    bool must_be_piece = end->destination && channel->stage == 0;
    if ((piece && !may_be_piece) || (!piece && must_be_piece)) {
        return malformed(err, index, "has an end that its stage cannot have");
    }
    return piece ? check_piece_end(program, index, end, err)
                 : check_buffer_end(program, bindings, index, end, channel->stage, err);
}

static int32_t check_types(const tb_program *program, uint32_t index, const tb_channel *channel,
                           tb_error *err) {
    const tb_chunk *chunk = &program->chunks[index];
    uint8_t reduce = channel->stage == 0 ? TB_OP_REDUCE : TB_OP_COPY;
    if (tb_dtype_size(chunk->source_dtype) == 0 || tb_dtype_size(chunk->destination_dtype) == 0
        || (chunk->wire_dtype != chunk->source_dtype && chunk->wire_dtype != chunk->destination_dtype)) {
        return malformed(err, index, "has impossible element types");
    }
    if (chunk->operation != reduce || (chunk->operation == TB_OP_COPY && chunk->fold_position != 0)) {
        return malformed(err, index, "has an operation that its stage cannot have");
    }
    if (reduce == TB_OP_REDUCE && chunk->source_dtype != chunk->destination_dtype) {
        return malformed(err, index, "reduces across element types");
    }
    return TB_OK;
}

static int32_t check_bucket(const tb_program *program, const tb_binding *bindings, uint32_t index,
                            tb_error *err) {
    const tb_bucket *bucket = &program->buckets[index];
    const tb_channel *channel = &program->channels[bucket->channel];
    uint64_t at = 0;
    for (uint32_t c = bucket->first_chunk; c < bucket->first_chunk + bucket->chunk_count; c++) {
        const tb_chunk *chunk = &program->chunks[c];
        chunk_end source = {chunk->source, chunk->source_descriptor, chunk->source_dtype, false};
        chunk_end destination = {chunk->destination, chunk->destination_descriptor, chunk->destination_dtype,
                                 true};
        int32_t code;
        if ((code = check_types(program, c, channel, err)) != TB_OK
            || (code = check_end(program, bindings, c, &source, channel, err)) != TB_OK
            || (code = check_end(program, bindings, c, &destination, channel, err)) != TB_OK) {
            return code;
        }
        uint64_t bytes;
        if (chunk->elements == 0
            || __builtin_mul_overflow(chunk->elements, tb_dtype_size(chunk->wire_dtype), &bytes)
            || __builtin_add_overflow(at, PADDING - 1, &at)
            || __builtin_add_overflow(at & ~(uint64_t)(PADDING - 1), bytes, &at)) {
            return malformed(err, c, "has a number of elements out of range");
        }
    }
    if (at != bucket->bytes) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0,
                       "program: bucket %u says that it has %llu bytes, but its chunks have %llu", index,
                       (unsigned long long)bucket->bytes, (unsigned long long)at);
    }
    return TB_OK;
}

static int32_t check_pieces(const tb_program *program, tb_error *err) {
    for (uint32_t i = 0; i < program->header->piece_count; i++) {
        const tb_piece *piece = &program->pieces[i];
        uint64_t bytes;
        bool known = tb_dtype_size(piece->dtype) != 0 && piece->op < TB_PARTIAL_COUNT;
        if (!known || __builtin_mul_overflow(piece->elements, tb_accumulator_size(piece->dtype), &bytes)
            || piece->pool_bytes < bytes || piece->pool_bytes % 64 != 0 || piece->elements == 0
            || piece->pool_bytes > program->header->pool_bytes || piece->contributions == 0) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: piece %u is malformed", i);
        }
        if (piece->divisor == 0 || (piece->divisor != 1 && !tb_dtype_is_float(piece->dtype))) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: piece %u cannot be divided by %llu", i,
                           (unsigned long long)piece->divisor);
        }
    }
    return TB_OK;
}

int32_t tb_program_check_chunks(const tb_program *program, const tb_binding *bindings, tb_error *err) {
    int32_t code = check_pieces(program, err);
    uint32_t chunk = 0;
    for (uint32_t i = 0; code == TB_OK && i < program->header->bucket_count; i++) {
        const tb_bucket *bucket = &program->buckets[i];
        if (bucket->first_chunk != chunk || bucket->chunk_count == 0
            || bucket->chunk_count > program->header->chunk_count - chunk) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: chunks of bucket %u are out of range", i);
        }
        chunk += bucket->chunk_count;
        code = check_bucket(program, bindings, i, err);
    }
    if (code == TB_OK && chunk != program->header->chunk_count) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: a chunk has no bucket");
    }
    return code;
}
