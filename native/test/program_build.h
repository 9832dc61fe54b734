/* One rank's program, as docs/program-format.md has it, out of what program_kit.h was told. */
#ifndef TB_PROGRAM_BUILD_H
#define TB_PROGRAM_BUILD_H

#include "program_kit.h"
#include "kernels/dtype.h"

typedef struct kit_program {
    uint8_t *bytes;
    uint64_t byte_count;
    uint32_t buffer_count;
    uint32_t tensor[2 * KIT_TENSORS]; /* of each buffer, and its kind */
    uint32_t kind[2 * KIT_TENSORS];
} kit_program;

typedef struct kit_row {
    const kit_bucket *bucket;
    int number;
    uint8_t direction;
    uint32_t peer;
} kit_row;

static inline int kit_compare_rows(const void *a, const void *b) {
    const kit_row *x = a;
    const kit_row *y = b;
    int64_t keys[5] = {(int64_t)x->bucket->wave - y->bucket->wave,
                       (int64_t)x->bucket->stage - y->bucket->stage, (int64_t)x->direction - y->direction,
                       (int64_t)x->peer - y->peer, x->number - y->number};
    for (int i = 0; i < 5; i++) {
        if (keys[i] != 0) {
            return keys[i] < 0 ? -1 : 1;
        }
    }
    return 0;
}

static inline uint64_t kit_bucket_bytes(const kit_bucket *bucket) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < bucket->chunk_count; i++) {
        at = (at + 15) / 16 * 16 + bucket->chunks[i].elements * tb_dtype_size(bucket->chunks[i].wire);
    }
    return at;
}

static inline uint64_t kit_align(uint64_t at) {
    return (at + 7) / 8 * 8;
}

static inline uint64_t kit_hash(uint64_t hash, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        hash = (hash ^ (value >> (8 * i) & 0xff)) * 0x100000001b3u;
    }
    return hash;
}

/* Which end of a chunk is memory of this rank: its buffers or pieces. */
static inline uint32_t kit_where(const kit_program *out, const int *piece_of, const kit_chunk *chunk,
                                 const kit_end *end, uint32_t kind) {
    if (end->piece >= 0) {
        return TB_PIECE_BIT + (uint32_t)piece_of[end->piece];
    }
    for (uint32_t i = 0; i < out->buffer_count; i++) {
        if (out->tensor[i] == chunk->tensor && out->kind[i] == kind) {
            return i;
        }
    }
    return TB_NONE;
}

static inline uint32_t kit_words(int64_t *words, uint64_t *used, const kit_end *end) {
    uint32_t at = (uint32_t)*used;
    uint64_t count = 3 + 2 * (uint64_t)end->words[1];
    memcpy(words + at, end->words, count * sizeof *words);
    *used += count;
    return at;
}

static inline uint64_t kit_staging(const tb_channel *channels, uint32_t channel_count,
                                   const tb_bucket *buckets, const kit *k, uint8_t direction) {
    uint64_t total = 0;
    for (uint8_t stage = 0; stage < TB_STAGES; stage++) {
        uint64_t slots = 0;
        uint64_t largest = 0;
        for (uint32_t c = 0; c < channel_count; c++) {
            if (channels[c].stage != stage || channels[c].direction != direction) {
                continue;
            }
            slots += channels[c].bucket_count < k->in_flight ? channels[c].bucket_count : k->in_flight;
            for (uint32_t b = 0; b < channels[c].bucket_count; b++) {
                uint64_t bytes = buckets[channels[c].first_bucket + b].bytes;
                largest = bytes > largest ? bytes : largest;
            }
        }
        uint64_t most = (uint64_t)k->in_flight * k->peers;
        total += (slots < most ? slots : most) * largest;
    }
    return total;
}

static inline kit_program kit_build(const kit *k, uint32_t rank, uint64_t pool_bytes) {
    kit_program out = {0};
    kit_row *rows = calloc((size_t)k->bucket_count + 1, sizeof *rows);
    int *row_of = calloc((size_t)k->bucket_count + 1, sizeof *row_of);
    int *piece_of = calloc((size_t)k->piece_count + 1, sizeof *piece_of);
    uint32_t count = 0;
    uint32_t chunks = 0;
    bool used[KIT_TENSORS][2] = {{false}};
    for (int b = 0; b < k->bucket_count; b++) {
        const kit_bucket *bucket = &k->buckets[b];
        row_of[b] = -1;
        if (bucket->source != rank && bucket->destination != rank) {
            continue;
        }
        uint8_t direction = bucket->source == bucket->destination ? TB_LOCAL
                            : bucket->source == rank              ? TB_SEND
                                                                  : TB_RECEIVE;
        rows[count++] =
            (kit_row){bucket, b, direction, direction == TB_SEND ? bucket->destination : bucket->source};
        chunks += bucket->chunk_count;
        for (uint32_t c = 0; c < bucket->chunk_count; c++) {
            const kit_chunk *chunk = &bucket->chunks[c];
            used[chunk->tensor][bucket->stage == 2] |= direction != TB_RECEIVE && chunk->source.piece < 0;
            used[chunk->tensor][1] |= direction != TB_SEND && chunk->destination.piece < 0;
        }
    }
    qsort(rows, count, sizeof *rows, kit_compare_rows);
    for (uint32_t i = 0; i < count; i++) {
        row_of[rows[i].number] = (int)i;
    }
    uint32_t pieces = 0;
    for (int p = 0; p < k->piece_count; p++) {
        piece_of[p] = k->pieces[p].owner == rank ? (int)pieces++ : -1;
    }
    for (uint32_t t = 0; t < KIT_TENSORS; t++) {
        for (uint32_t kind = 0; kind < 2; kind++) {
            if (used[t][kind]) {
                out.tensor[out.buffer_count] = t;
                out.kind[out.buffer_count++] = kind;
            }
        }
    }
    uint64_t room = 192 + 32 * 2 * KIT_TENSORS + (uint64_t)count * (80 + 4 * KIT_DEPENDENCIES) + pieces * 40
                    + chunks * (40 + 2 * 8 * KIT_WORDS) + 256;
    out.bytes = calloc(1, room);
    tb_program_header *header = (tb_program_header *)out.bytes;
    *header = (tb_program_header){.magic = 0x47504254,
                                  .version = 1,
                                  .rank = rank,
                                  .bucket_bytes = k->bucket_bytes,
                                  .buckets_in_flight = k->in_flight,
                                  .peers_in_flight = k->peers,
                                  .buffer_count = out.buffer_count,
                                  .bucket_count = count,
                                  .chunk_count = chunks,
                                  .piece_count = pieces,
                                  .pool_bytes = pool_bytes,
                                  .buffers_at = 192};
    memcpy(header->digest, k->digest, 32);
    tb_buffer *buffers = (tb_buffer *)(out.bytes + header->buffers_at);
    for (uint32_t i = 0; i < out.buffer_count; i++) {
        uint64_t span = k->span[out.tensor[i]][out.kind[i]];
        uint8_t dtype = k->dtype[out.tensor[i]][out.kind[i]];
        buffers[i] =
            (tb_buffer){out.tensor[i], (uint8_t)out.kind[i], dtype, 0, span, span / tb_dtype_size(dtype), 0};
    }
    header->channels_at = header->buffers_at + 32 * out.buffer_count;
    tb_channel *channels = (tb_channel *)(out.bytes + header->channels_at);
    for (uint32_t i = 0; i < count; i++) {
        tb_channel *last = header->channel_count > 0 ? &channels[header->channel_count - 1] : NULL;
        const kit_bucket *bucket = rows[i].bucket;
        if (last == NULL || last->stage != bucket->stage || last->direction != rows[i].direction
            || last->peer != rows[i].peer) {
            last = &channels[header->channel_count++];
            *last = (tb_channel){.stage = bucket->stage,
                                 .direction = rows[i].direction,
                                 .peer = rows[i].peer,
                                 .wave = bucket->wave,
                                 .first_bucket = i,
                                 .fingerprint = 0xcbf29ce484222325u};
        }
        last->bucket_count++;
        last->bytes += kit_bucket_bytes(bucket);
        last->fingerprint =
            kit_hash(kit_hash(last->fingerprint, kit_bucket_bytes(bucket)), bucket->chunk_count);
        header->payload_bytes += rows[i].direction == TB_SEND ? kit_bucket_bytes(bucket) : 0;
    }
    header->buckets_at = header->channels_at + 40 * header->channel_count;
    header->chunks_at = header->buckets_at + 40 * count;
    header->pieces_at = header->chunks_at + 40 * chunks;
    header->dependencies_at = header->pieces_at + 40 * pieces;
    tb_bucket *buckets = (tb_bucket *)(out.bytes + header->buckets_at);
    tb_chunk *chunk_rows = (tb_chunk *)(out.bytes + header->chunks_at);
    tb_piece *piece_rows = (tb_piece *)(out.bytes + header->pieces_at);
    uint32_t *dependencies = (uint32_t *)(out.bytes + header->dependencies_at);
    int64_t *words = calloc(chunks * 2 + 1, KIT_WORDS * sizeof *words);
    for (int p = 0; p < k->piece_count; p++) {
        const kit_piece *piece = &k->pieces[p];
        if (piece_of[p] >= 0) {
            uint64_t bytes = piece->elements * tb_accumulator_size(piece->dtype);
            piece_rows[piece_of[p]] = (tb_piece){piece->tensor,
                                                 piece->dtype,
                                                 piece->op,
                                                 0,
                                                 piece->elements,
                                                 piece->divisor,
                                                 piece->contributions,
                                                 0,
                                                 (bytes + 63) / 64 * 64};
        }
    }
    uint32_t channel = 0;
    uint32_t next_chunk = 0;
    for (uint32_t i = 0; i < count; i++) {
        const kit_bucket *bucket = rows[i].bucket;
        while (i >= channels[channel].first_bucket + channels[channel].bucket_count) {
            channel++;
        }
        bool sends = rows[i].direction != TB_RECEIVE;
        bool receives = rows[i].direction != TB_SEND;
        bool folds = receives && bucket->stage == 0;
        buckets[i] =
            (tb_bucket){.bytes = kit_bucket_bytes(bucket),
                        .channel = channel,
                        .first_chunk = next_chunk,
                        .chunk_count = bucket->chunk_count,
                        .first_dependency = header->dependency_count,
                        .fold_after =
                            folds && bucket->fold_after >= 0 ? (uint32_t)row_of[bucket->fold_after] : TB_NONE,
                        .flags = folds ? bucket->flags : 0};
        for (uint32_t d = 0; sends && !folds && d < bucket->dependency_count; d++) {
            dependencies[header->dependency_count++] = (uint32_t)row_of[bucket->dependencies[d]];
            buckets[i].dependency_count++;
        }
        for (uint32_t c = 0; c < bucket->chunk_count; c++) {
            const kit_chunk *chunk = &bucket->chunks[c];
            tb_chunk *row = &chunk_rows[next_chunk++];
            *row = (tb_chunk){.source = TB_NONE,
                              .destination = TB_NONE,
                              .elements = chunk->elements,
                              .source_dtype = chunk->from,
                              .wire_dtype = chunk->wire,
                              .destination_dtype = chunk->to,
                              .operation = bucket->stage == 0,
                              .fold_position = chunk->fold_position,
                              .tensor = chunk->tensor};
            if (sends) {
                row->source = kit_where(&out, piece_of, chunk, &chunk->source, bucket->stage == 2);
                row->source_descriptor =
                    chunk->source.piece < 0 ? kit_words(words, &header->word_count, &chunk->source) : 0;
                if (chunk->source.piece >= 0) {
                    piece_rows[piece_of[chunk->source.piece]].readers++;
                }
            }
            if (receives) {
                row->destination = kit_where(&out, piece_of, chunk, &chunk->destination, 1);
                row->destination_descriptor = chunk->destination.piece < 0
                                                  ? kit_words(words, &header->word_count, &chunk->destination)
                                                  : 0;
            }
        }
    }
    header->words_at = kit_align(header->dependencies_at + 4 * header->dependency_count);
    memcpy(out.bytes + header->words_at, words, header->word_count * sizeof *words);
    header->total_bytes = header->words_at + header->word_count * 8;
    header->send_staging_bytes = kit_staging(channels, header->channel_count, buckets, k, TB_SEND);
    header->recv_staging_bytes = kit_staging(channels, header->channel_count, buckets, k, TB_RECEIVE);
    out.byte_count = header->total_bytes;
    free(words);
    free(piece_of);
    free(row_of);
    free(rows);
    return out;
}

#endif
