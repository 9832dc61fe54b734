/*
 * The program of a rank (docs/program-format.md), copied and checked once. Every later use trusts it: each
 * index is in range, each descriptor stays within its buffer's span, nothing waits in a circle, and the fold
 * order is a total one.
 */
#ifndef TB_PROGRAM_H
#define TB_PROGRAM_H

#include <stdbool.h>
#include <stdint.h>

#include "tensorbus.h"

#define TB_NONE UINT32_MAX
#define TB_PIECE_BIT 0x80000000u
#define TB_BUCKET_COMPLETES 1u
#define TB_STAGES 3

enum tb_direction { TB_LOCAL = 0, TB_SEND = 1, TB_RECEIVE = 2 };

/* The tables as they lie in the bytes; their offsets are those of the format. */
typedef struct tb_program_header {
    uint32_t magic, version, rank, flags;
    uint8_t digest[32];
    uint64_t bucket_bytes;
    uint32_t buckets_in_flight, peers_in_flight;
    uint32_t buffer_count, channel_count, bucket_count, chunk_count, piece_count, dependency_count;
    uint64_t word_count;
    uint64_t buffers_at, channels_at, buckets_at, chunks_at, pieces_at, dependencies_at, words_at;
    uint64_t total_bytes, send_staging_bytes, recv_staging_bytes, pool_bytes, payload_bytes;
} tb_program_header;

typedef struct tb_buffer {
    uint32_t tensor;
    uint8_t kind, dtype;
    uint16_t zero;
    uint64_t span, elements, reserved;
} tb_buffer;

typedef struct tb_channel {
    uint8_t stage, direction;
    uint16_t zero;
    uint32_t peer, wave, first_bucket, bucket_count;
    uint32_t turn; /* the order of what is received in stage 1 and handed on */
    uint64_t bytes;
    uint64_t fingerprint;
} tb_channel;

typedef struct tb_bucket {
    uint64_t bytes;
    uint32_t channel, first_chunk, chunk_count, first_dependency, dependency_count, fold_after, flags,
        reserved;
} tb_bucket;

typedef struct tb_chunk {
    uint32_t source, destination, source_descriptor, destination_descriptor;
    uint64_t elements;
    uint8_t source_dtype, wire_dtype, destination_dtype, operation;
    uint32_t fold_position, tensor, reserved;
} tb_chunk;

typedef struct tb_piece {
    uint32_t tensor;
    uint8_t dtype, op;
    uint16_t zero;
    uint64_t elements, divisor;
    uint32_t contributions, readers;
    uint64_t pool_bytes;
} tb_piece;

typedef struct tb_program {
    uint8_t *bytes; /* owned; the tables below lie in it */
    const tb_program_header *header;
    const tb_buffer *buffers;
    const tb_channel *channels;
    const tb_bucket *buckets;
    const tb_chunk *chunks;
    const tb_piece *pieces;
    const uint32_t *dependencies;
    const int64_t *words;

    /* Derived. dependents of bucket b: dependents[first_dependent[b]] up to those of b + 1. */
    uint32_t *first_dependent;
    uint32_t *dependents;
    /*
     * Buckets of stage 0 that come in or are this rank's own, by (first piece, fold position); then the next
     * of a fold.
     */
    uint32_t *fold_order;
    uint32_t fold_count;
    uint32_t *fold_next;
    /* For stages 1 and 2: the channels that are received from, once for each bucket, in the order of the grants. */
    uint32_t *turns[TB_STAGES];
    uint32_t turn_count[TB_STAGES];
    uint32_t local_buckets;
    uint32_t receive_channels;
    uint32_t send_channels;
    /* Slots in which contributions wait for their turn. */
    uint32_t slot_count;
    uint64_t slot_bytes;
    /* The most staging of the later stages' streams at once, for receiving and for sending. */
    uint64_t receive_stream_bytes;
    uint64_t send_stream_bytes;
    uint64_t bytes_total; /* payload of every bucket: sent, received and moved here */
} tb_program;

/* bindings: one for each buffer. rank, world: of the session. */
int32_t tb_program_load(tb_program *program, const void *bytes, uint64_t byte_count,
                        const tb_binding *bindings, uint32_t binding_count, int32_t rank, int32_t world,
                        tb_error *err);
void tb_program_free(tb_program *program);

static inline const tb_channel *tb_bucket_channel(const tb_program *program, uint32_t bucket) {
    return &program->channels[program->buckets[bucket].channel];
}

static inline uint32_t tb_bucket_sequence(const tb_program *program, uint32_t bucket) {
    return bucket - tb_bucket_channel(program, bucket)->first_bucket;
}

/* A contribution that comes here, or is this rank's own. */
static inline bool tb_bucket_folds(const tb_program *program, uint32_t bucket) {
    const tb_channel *channel = tb_bucket_channel(program, bucket);
    return channel->stage == 0 && channel->direction != TB_SEND;
}

/* Bytes of a chunk on the wire, less the padding before it. */
uint64_t tb_chunk_wire_bytes(const tb_chunk *chunk);

/* Parts of tb_program_load, each in a file of its own. They fail with TB_EPLAN_FORMAT or TB_EREGION. */
int32_t tb_program_check_chunks(const tb_program *program, const tb_binding *bindings, tb_error *err);
int32_t tb_program_order_folds(tb_program *program, tb_error *err);
int32_t tb_program_order_buckets(tb_program *program, tb_error *err);
int32_t tb_program_order_turns(tb_program *program, tb_error *err);
int32_t tb_program_check_pool(const tb_program *program, tb_error *err);
int32_t tb_program_check_reads(const tb_program *program, tb_error *err);

#endif
