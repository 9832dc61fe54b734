/* The programs of a small world, said by hand: every bucket once. program_build.h gives each rank its end. */
#ifndef TB_PROGRAM_KIT_H
#define TB_PROGRAM_KIT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cursor.h"
#include "program/program.h"
#include "kernels/dtype.h"

enum { KIT_CHUNKS = 8, KIT_DEPENDENCIES = 16, KIT_WORDS = 11, KIT_TENSORS = 16 };

/* One end: a tensor's bytes, or a piece of the pool. */
typedef struct kit_end {
    int piece; /* number of a kit piece, or -1 */
    int64_t words[KIT_WORDS]; /* descriptor */
} kit_end;

typedef struct kit_chunk {
    uint32_t tensor;
    uint64_t elements;
    uint8_t from, wire, to; /* element types */
    uint32_t fold_position;
    kit_end source, destination;
} kit_chunk;

typedef struct kit_bucket {
    uint8_t stage;
    uint32_t source, destination, wave;
    uint32_t chunk_count;
    kit_chunk chunks[KIT_CHUNKS];
    uint32_t dependency_count;
    int dependencies[KIT_DEPENDENCIES]; /* kit buckets of the sending rank */
    int fold_after; /* kit bucket, or -1 */
    uint32_t flags;
} kit_bucket;

typedef struct kit_piece {
    uint32_t owner, tensor;
    uint8_t dtype, op;
    uint64_t elements, divisor;
    uint32_t contributions;
} kit_piece;

typedef struct kit {
    uint32_t in_flight, peers;
    uint64_t bucket_bytes; /* the most of a bucket */
    kit_bucket *buckets;
    int bucket_count;
    kit_piece *pieces;
    int piece_count;
    uint64_t span[KIT_TENSORS][2]; /* bytes of each tensor, source and target */
    uint8_t dtype[KIT_TENSORS][2];
    uint8_t digest[32];
} kit;

static inline void kit_start(kit *k, uint32_t in_flight, uint32_t peers) {
    memset(k, 0, sizeof *k);
    k->in_flight = in_flight;
    k->peers = peers;
    k->bucket_bytes = 8 << 20;
    memset(k->digest, 0xd1, sizeof k->digest);
}

static inline void kit_free(kit *k) {
    free(k->buckets);
    free(k->pieces);
}

static inline void kit_tensor(kit *k, uint32_t tensor, uint8_t from, uint64_t from_span, uint8_t to,
                              uint64_t to_span) {
    k->dtype[tensor][0] = from;
    k->dtype[tensor][1] = to;
    k->span[tensor][0] = from_span;
    k->span[tensor][1] = to_span;
}

static inline kit_bucket *kit_bucket_add(kit *k, uint8_t stage, uint32_t source, uint32_t destination,
                                         uint32_t wave) {
    if ((k->bucket_count & (k->bucket_count - 1)) == 0) {
        k->buckets = realloc(k->buckets, 2 * ((size_t)k->bucket_count + 1) * sizeof *k->buckets);
    }
    kit_bucket *bucket = &k->buckets[k->bucket_count++];
    memset(bucket, 0, sizeof *bucket);
    bucket->stage = stage;
    bucket->source = source;
    bucket->destination = destination;
    bucket->wave = wave;
    bucket->fold_after = -1;
    return bucket;
}

static inline int kit_piece_add(kit *k, uint32_t owner, uint32_t tensor, uint8_t dtype, uint8_t op,
                                uint64_t elements, uint64_t divisor, uint32_t contributions) {
    k->pieces = realloc(k->pieces, ((size_t)k->piece_count + 1) * sizeof *k->pieces);
    k->pieces[k->piece_count] = (kit_piece){owner, tensor, dtype, op, elements, divisor, contributions};
    return k->piece_count++;
}

static inline kit_end kit_run(int64_t offset, int64_t bytes) {
    return (kit_end){-1, {offset, 0, bytes}};
}

static inline kit_end kit_rows(int64_t offset, int64_t count, int64_t stride, int64_t run) {
    return (kit_end){-1, {offset, 1, count, stride, run}};
}

static inline kit_end kit_in_piece(int piece) {
    return (kit_end){piece, {0}};
}

static inline void kit_copy(kit *k, kit_bucket *bucket, uint32_t tensor, uint64_t elements, kit_end source,
                            kit_end destination) {
    uint8_t from = k->dtype[tensor][0];
    uint8_t to = k->dtype[tensor][1];
    if (bucket->stage == 2) {
        from = to;
    }
    uint8_t wire = tb_dtype_size(from) < tb_dtype_size(to) ? from : to;
    bucket->chunks[bucket->chunk_count++] =
        (kit_chunk){tensor, elements, from, wire, to, 0, source, destination};
}

static inline void kit_reduce(kit *k, kit_bucket *bucket, uint32_t tensor, uint32_t position, kit_end source,
                              int piece) {
    uint8_t dtype = k->dtype[tensor][0];
    bucket->chunks[bucket->chunk_count++] =
        (kit_chunk){tensor, k->pieces[piece].elements, dtype, dtype, dtype, position,
                    source, kit_in_piece(piece)};
    if (position == k->pieces[piece].contributions - 1) {
        bucket->flags = TB_BUCKET_COMPLETES;
    }
}

#endif
