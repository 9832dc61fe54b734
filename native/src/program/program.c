/*
 * The checks of a program's header and tables, and what is derived from them. No lock is needed: it belongs to one
 * prepare.
 */
#include "program/program.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cursor.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "kernels/dtype.h"

#define MAGIC 0x47504254u
#define FORMAT 1u

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "programs and the wire are little-endian, and are read in place"
#endif

_Static_assert(sizeof(tb_program_header) == 192, "header");
_Static_assert(sizeof(tb_buffer) == 32 && sizeof(tb_channel) == 40 && sizeof(tb_bucket) == 40, "tables");
_Static_assert(sizeof(tb_chunk) == 40 && sizeof(tb_piece) == 40, "tables");

static int32_t malformed(tb_error *err, const char *what) {
    return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: %s", what);
}

uint64_t tb_chunk_wire_bytes(const tb_chunk *chunk) {
    return chunk->elements * tb_dtype_size(chunk->wire_dtype);
}

/* The table at `at` with `count` rows of `row` bytes, or NULL if it does not lie in the program. */
static const void *table_of(const tb_program_header *header, uint64_t at, uint64_t count, uint64_t row) {
    uint64_t bytes;
    uint64_t end;
    if (at % 8 != 0 || at < sizeof *header || __builtin_mul_overflow(count, row, &bytes)
        || __builtin_add_overflow(at, bytes, &end) || end > header->total_bytes) {
        return NULL;
    }
    return (const uint8_t *)header + at;
}

static int32_t find_tables(tb_program *program, tb_error *err) {
    const tb_program_header *header = program->header;
    program->buffers = table_of(header, header->buffers_at, header->buffer_count, sizeof(tb_buffer));
    program->channels = table_of(header, header->channels_at, header->channel_count, sizeof(tb_channel));
    program->buckets = table_of(header, header->buckets_at, header->bucket_count, sizeof(tb_bucket));
    program->chunks = table_of(header, header->chunks_at, header->chunk_count, sizeof(tb_chunk));
    program->pieces = table_of(header, header->pieces_at, header->piece_count, sizeof(tb_piece));
    program->dependencies =
        table_of(header, header->dependencies_at, header->dependency_count, sizeof(uint32_t));
    program->words = table_of(header, header->words_at, header->word_count, sizeof(int64_t));
    if (!program->buffers || !program->channels || !program->buckets || !program->chunks || !program->pieces
        || !program->dependencies || !program->words) {
        return malformed(err, "a table lies beyond its end");
    }
    if (header->piece_count >= TB_PIECE_BIT || header->buffer_count >= TB_PIECE_BIT
        || header->bucket_count == TB_NONE || header->chunk_count == TB_NONE) {
        return malformed(err, "a count is out of range");
    }
    return TB_OK;
}

static int32_t check_header(const tb_program_header *header, uint64_t bytes, int32_t rank, tb_error *err) {
    if (header->magic != MAGIC) {
        return malformed(err, "these bytes are not a program");
    }
    if (header->version != FORMAT) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "the program has format %u, but this version reads format %u",
                       header->version, FORMAT);
    }
    if (header->total_bytes != bytes) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "the program has %llu bytes, but says that it has %llu",
                       (unsigned long long)bytes, (unsigned long long)header->total_bytes);
    }
    if (header->rank != (uint32_t)rank) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "the program is for rank %u, but was given to rank %d",
                       header->rank, rank);
    }
    if (header->flags != 0) {
        return malformed(err, "unknown flags");
    }
    if (header->buckets_in_flight == 0 || header->peers_in_flight == 0) {
        return malformed(err, "bucketsInFlight and peersInFlight must be at least 1");
    }
    return TB_OK;
}

static int32_t check_buffers(const tb_program *program, const tb_binding *bindings, uint32_t binding_count,
                             tb_error *err) {
    if (binding_count != program->header->buffer_count) {
        return tb_fail(err, TB_ETENSOR_MISSING, -1, 0, "the program has %u buffers, but was given %u bindings",
                       program->header->buffer_count, binding_count);
    }
    for (uint32_t i = 0; i < binding_count; i++) {
        const tb_buffer *buffer = &program->buffers[i];
        if (buffer->kind > 1 || tb_dtype_size(buffer->dtype) == 0) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: buffer %u has the unknown kind %u or type %u", i,
                           buffer->kind, buffer->dtype);
        }
        if (buffer->span > bindings[i].bytes) {
            return tb_fail(err, TB_EREGION, -1, 0, "tensor %u needs %llu bytes of memory, but has %llu",
                           buffer->tensor, (unsigned long long)buffer->span,
                           (unsigned long long)bindings[i].bytes);
        }
    }
    return TB_OK;
}

/* Ascending order of (wave, stage, direction, peer), which is that of starting work. */
static bool channel_before(const tb_channel *a, const tb_channel *b) {
    if (a->wave != b->wave) {
        return a->wave < b->wave;
    }
    if (a->stage != b->stage) {
        return a->stage < b->stage;
    }
    if (a->direction != b->direction) {
        return a->direction < b->direction;
    }
    return a->peer < b->peer;
}

static uint64_t fingerprint_u64(uint64_t hash, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        hash = tb_fingerprint_step(hash, value >> (8 * i) & 0xff);
    }
    return hash;
}

static int32_t check_channel(const tb_program *program, uint32_t index, uint32_t bucket, int32_t world,
                             tb_error *err) {
    const tb_channel *channel = &program->channels[index];
    bool local = channel->direction == TB_LOCAL;
    if (channel->stage >= TB_STAGES || channel->direction > TB_RECEIVE || channel->peer >= (uint32_t)world
        || local != (channel->peer == program->header->rank)) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0,
                       "program: channel %u is impossible: stage %u, direction %u, peer %u", index, channel->stage,
                       channel->direction, channel->peer);
    }
    if (index > 0 && !channel_before(&program->channels[index - 1], channel)) {
        return malformed(err, "its channels are out of order");
    }
    if (channel->first_bucket != bucket || channel->bucket_count == 0
        || channel->bucket_count > program->header->bucket_count - bucket) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: buckets of channel %u are out of range", index);
    }
    uint64_t hash = TB_FINGERPRINT_START;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < channel->bucket_count; i++) {
        const tb_bucket *row = &program->buckets[bucket + i];
        hash = fingerprint_u64(fingerprint_u64(hash, row->bytes), row->chunk_count);
        if (row->channel != index || __builtin_add_overflow(bytes, row->bytes, &bytes)) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: bucket %u does not belong to channel %u", bucket + i,
                           index);
        }
    }
    if (bytes != channel->bytes || hash != channel->fingerprint) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: bytes or fingerprint of channel %u are wrong",
                       index);
    }
    return TB_OK;
}

/* One channel for each stage, direction and peer: found by sorting keys. */
static int compare_u64(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int32_t check_channels_unique(const tb_program *program, tb_error *err) {
    uint32_t count = program->header->channel_count;
    uint64_t *keys = malloc(((size_t)count + 1) * sizeof *keys);
    if (keys == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a table of %u channels", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        const tb_channel *channel = &program->channels[i];
        keys[i] = (uint64_t)channel->peer << 8 | (uint64_t)channel->stage << 4 | channel->direction;
    }
    qsort(keys, count, sizeof *keys, compare_u64);
    bool twice = false;
    for (uint32_t i = 1; i < count; i++) {
        twice |= keys[i] == keys[i - 1];
    }
    free(keys);
    return twice ? malformed(err, "two channels have one stage, direction and peer") : TB_OK;
}

static int32_t check_channels(tb_program *program, int32_t world, tb_error *err) {
    const tb_program_header *header = program->header;
    uint32_t bucket = 0;
    uint64_t sent = 0;
    for (uint32_t i = 0; i < header->channel_count; i++) {
        int32_t code = check_channel(program, i, bucket, world, err);
        if (code != TB_OK) {
            return code;
        }
        const tb_channel *channel = &program->channels[i];
        bucket += channel->bucket_count;
        program->local_buckets += channel->direction == TB_LOCAL ? channel->bucket_count : 0;
        program->receive_channels += channel->direction == TB_RECEIVE;
        program->send_channels += channel->direction == TB_SEND;
        if (__builtin_add_overflow(program->bytes_total, channel->bytes, &program->bytes_total)) {
            return malformed(err, "bytes overflow");
        }
        sent += channel->direction == TB_SEND ? channel->bytes : 0;
    }
    if (bucket != header->bucket_count || sent != header->payload_bytes) {
        return malformed(err, "a bucket has no channel, or the sum of bytes is wrong");
    }
    return check_channels_unique(program, err);
}

/* Slots of one stage and direction, and their bytes: as docs/program-format.md counts staging. */
static int32_t stage_slots(const tb_program *program, uint8_t stage, uint8_t direction, uint32_t *slots,
                           uint64_t *largest, tb_error *err) {
    const tb_program_header *header = program->header;
    uint64_t most = (uint64_t)header->buckets_in_flight * header->peers_in_flight;
    uint64_t sum = 0;
    *largest = 0;
    for (uint32_t i = 0; i < header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        if (channel->stage != stage || channel->direction != direction) {
            continue;
        }
        sum += channel->bucket_count < header->buckets_in_flight ? channel->bucket_count
                                                                 : header->buckets_in_flight;
        for (uint32_t b = 0; b < channel->bucket_count; b++) {
            uint64_t bytes = program->buckets[channel->first_bucket + b].bytes;
            *largest = bytes > *largest ? bytes : *largest;
        }
    }
    uint64_t count = sum < most ? sum : most;
    uint64_t bytes;
    if (count > UINT32_MAX || __builtin_mul_overflow(count, *largest, &bytes)) {
        return malformed(err, "staging overflows");
    }
    *slots = (uint32_t)count;
    return TB_OK;
}

static int32_t check_staging(tb_program *program, tb_error *err) {
    uint64_t totals[3] = {0, 0, 0}; /* by direction */
    for (uint8_t stage = 0; stage < TB_STAGES; stage++) {
        for (uint8_t direction = TB_SEND; direction <= TB_RECEIVE; direction++) {
            uint32_t slots = 0;
            uint64_t largest = 0;
            int32_t code = stage_slots(program, stage, direction, &slots, &largest, err);
            if (code != TB_OK) {
                return code;
            }
            if (__builtin_add_overflow(totals[direction], slots * largest, &totals[direction])) {
                return malformed(err, "staging overflows");
            }
            if (stage == 0 && direction == TB_RECEIVE) {
                program->slot_count = slots;
                program->slot_bytes = largest;
            }
        }
    }
    const tb_program_header *header = program->header;
    if (header->send_staging_bytes < totals[TB_SEND] || header->recv_staging_bytes < totals[TB_RECEIVE]) {
        return malformed(err, "it announces less staging than its buckets take");
    }
    uint64_t sum;
    if (__builtin_add_overflow(header->send_staging_bytes, header->recv_staging_bytes, &sum)
        || __builtin_add_overflow(sum, header->pool_bytes, &sum)) {
        return malformed(err, "staging overflows");
    }
    program->receive_stream_bytes = totals[TB_RECEIVE] - program->slot_count * program->slot_bytes;
    program->send_stream_bytes = totals[TB_SEND];
    return TB_OK;
}

static int32_t check(tb_program *program, const tb_binding *bindings, uint32_t binding_count, int32_t world,
                     tb_error *err) {
    int32_t code;
    if ((code = find_tables(program, err)) != TB_OK
        || (code = check_buffers(program, bindings, binding_count, err))
        || (code = check_channels(program, world, err))
        || (code = tb_program_check_chunks(program, bindings, err)) || (code = check_staging(program, err))
        || (code = tb_program_order_folds(program, err)) || (code = tb_program_order_buckets(program, err))
        || (code = tb_program_order_turns(program, err))) {
        return code;
    }
    return TB_OK;
}

int32_t tb_program_load(tb_program *program, const void *bytes, uint64_t byte_count,
                        const tb_binding *bindings, uint32_t binding_count, int32_t rank, int32_t world,
                        tb_error *err) {
    memset(program, 0, sizeof *program);
    if (bytes == NULL || byte_count < sizeof(tb_program_header)) {
        return malformed(err, "these bytes are not a program");
    }
    program->bytes = malloc(byte_count);
    if (program->bytes == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a program of %llu bytes",
                       (unsigned long long)byte_count);
    }
    memcpy(program->bytes, bytes, byte_count);
    program->header = (const tb_program_header *)program->bytes;
    int32_t code = check_header(program->header, byte_count, rank, err);
    if (code == TB_OK) {
        code = check(program, bindings, binding_count, world, err);
    }
    if (code != TB_OK) {
        tb_program_free(program);
    }
    return code;
}

void tb_program_free(tb_program *program) {
    free(program->fold_next);
    free(program->fold_order);
    for (int stage = 0; stage < TB_STAGES; stage++) {
        free(program->turns[stage]);
    }
    free(program->dependents);
    free(program->first_dependent);
    free(program->bytes);
    memset(program, 0, sizeof *program);
}
