/* What a source tells each of its targets: where the chunks that it sends to it lie. The session's lock is held. */
#include <stdlib.h>
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "memory/shared_table.h"
#include "round/export.h"
#include "wire/peer.h"

/* Parts go out at once, so this is bounded by what a connection may hold back. */
enum { MOST_EXPORT_BYTES = 48 << 20 };

typedef struct export {
    tb_exchange *exchange;
    const tb_carrier *carrier;
    tb_wire_export header;
    uint32_t *region_of; /* by the session's region: its number here, or TB_NONE */
    uint32_t pool;       /* its number, or TB_NONE */
    tb_wire_region *regions;
    tb_wire_end *ends;
    int64_t *words;
    uint8_t *blobs;
    uint8_t session_blob[TB_SESSION_BLOB_BYTES];
} export;

static void count_ends(export *out) {
    const tb_program *program = &out->exchange->transfer->program;
    for (int stage = 0; stage < TB_STAGES; stage++) {
        if (out->exchange->send[stage] == TB_NONE) {
            continue;
        }
        const tb_channel *channel = &program->channels[out->exchange->send[stage]];
        for (uint32_t b = channel->first_bucket; b < channel->first_bucket + channel->bucket_count; b++) {
            const tb_bucket *bucket = &program->buckets[b];
            out->header.ends += bucket->chunk_count;
            for (uint32_t c = bucket->first_chunk; c < bucket->first_chunk + bucket->chunk_count; c++) {
                const tb_chunk *chunk = &program->chunks[c];
                bool fixed = chunk->source >= TB_PIECE_BIT && out->exchange->transfer->device != NULL;
                out->header.words += chunk->source < TB_PIECE_BIT
                                         ? 3 + 2 * (uint64_t)program->words[chunk->source_descriptor + 1]
                                     : fixed ? TB_PIECE_WORDS
                                             : 0;
            }
        }
    }
}

static int32_t add_region(export *out, const tb_region *region, uint32_t number, tb_wire_region *row, tb_error *err) {
    *row = (tb_wire_region){
        .memory = region->memory, .number = number, .bytes = region->bytes, .blob_at = out->header.blob_bytes};
    int32_t code = out->carrier->describe(out->exchange->transfer->session, region, number,
                                          out->blobs + out->header.blob_bytes, &row->blob_bytes, err);
    out->header.blob_bytes += row->blob_bytes;
    return code;
}

static int32_t use_region(export *out, uint32_t number, tb_error *err) {
    if (out->region_of[number] != TB_NONE) {
        return TB_OK;
    }
    out->region_of[number] = out->header.regions;
    return add_region(out, &out->exchange->transfer->session->regions[number], number,
                      &out->regions[out->header.regions++], err);
}

static int32_t use_pool(export *out, tb_error *err) {
    tb_transfer *transfer = out->exchange->transfer;
    if (out->pool != TB_NONE) {
        return TB_OK;
    }
    out->pool = out->header.regions;
    tb_wire_region *row = &out->regions[out->header.regions++];
    int32_t code = add_region(out, &transfer->pool.region, TB_WIRE_POOL, row, err);
    if (transfer->device == NULL) {
        row->pieces = transfer->program.header->piece_count;
        row->pieces_at = (uint64_t)((uint8_t *)transfer->pool.shared_at - transfer->pool.memory);
    }
    return code;
}

static int32_t add_end(export *out, const tb_chunk *chunk, tb_wire_end *end, uint64_t *words, tb_error *err) {
    tb_transfer *transfer = out->exchange->transfer;
    if (chunk->source >= TB_PIECE_BIT) {
        int32_t code = use_pool(out, err);
        if (transfer->device != NULL) {
            uint32_t piece = chunk->source - TB_PIECE_BIT;
            *end = (tb_wire_end){transfer->pool.fixed_at[piece], out->pool, (uint32_t)*words, chunk->source_dtype, 0};
            transfer->session->devices->piece_words(&transfer->program.pieces[piece], out->words + *words);
            *words += TB_PIECE_WORDS;
            return code;
        }
        *end = (tb_wire_end){chunk->source - TB_PIECE_BIT, out->pool, TB_NONE, chunk->source_dtype, 0};
        return code;
    }
    uint32_t number = transfer->regions[chunk->source];
    int32_t code = use_region(out, number, err);
    if (code != TB_OK) {
        return code;
    }
    const int64_t *descriptor = transfer->program.words + chunk->source_descriptor;
    uint64_t length = 3 + 2 * (uint64_t)descriptor[1];
    *end = (tb_wire_end){transfer->bindings[chunk->source].address - transfer->session->regions[number].address,
                         out->region_of[number], (uint32_t)*words, chunk->source_dtype, 0};
    memcpy(out->words + *words, descriptor, length * sizeof *descriptor);
    *words += length;
    return TB_OK;
}

static int32_t add_ends(export *out, tb_error *err) {
    const tb_program *program = &out->exchange->transfer->program;
    uint64_t words = 0;
    uint32_t at = 0;
    for (int stage = 0; stage < TB_STAGES; stage++) {
        if (out->exchange->send[stage] == TB_NONE) {
            continue;
        }
        const tb_channel *channel = &program->channels[out->exchange->send[stage]];
        const tb_bucket *last = &program->buckets[channel->first_bucket + channel->bucket_count - 1];
        uint32_t first = program->buckets[channel->first_bucket].first_chunk;
        for (uint32_t c = first; c < last->first_chunk + last->chunk_count; c++) {
            int32_t code = add_end(out, &program->chunks[c], &out->ends[at++], &words, err);
            if (code != TB_OK) {
                return code;
            }
        }
    }
    return TB_OK;
}

static void say_part(const tb_exchange *exchange, const void *bytes, uint64_t count, uint8_t *part, uint64_t *used,
                     bool last) {
    const uint8_t *from = bytes;
    while (count > 0 || (last && *used > 0)) {
        uint64_t room = TB_EXPORT_BYTES - *used;
        uint64_t more = count < room ? count : room;
        memcpy(part + *used, from, more);
        *used += more;
        from += more;
        count -= more;
        if (*used < TB_EXPORT_BYTES && !last) {
            return;
        }
        tb_wire_header header = {.kind = TB_FRAME_EXPORT,
                                 .transfer = exchange->remote,
                                 .round = exchange->transfer->handle,
                                 .body_bytes = *used};
        tb_peer_say(exchange->peer, &header, part);
        *used = 0;
    }
}

static void say(const export *out) {
    uint8_t part[TB_EXPORT_BYTES];
    uint64_t used = 0;
    const tb_wire_export *header = &out->header;
    say_part(out->exchange, header, sizeof *header, part, &used, false);
    say_part(out->exchange, out->regions, header->regions * sizeof *out->regions, part, &used, false);
    say_part(out->exchange, out->ends, header->ends * sizeof *out->ends, part, &used, false);
    say_part(out->exchange, out->words, header->words * sizeof *out->words, part, &used, false);
    say_part(out->exchange, out->blobs, header->blob_bytes, part, &used, false);
    say_part(out->exchange, out->session_blob, header->session_bytes, part, &used, true);
}

int32_t tb_export_say(tb_exchange *exchange, tb_error *err) {
    tb_session *session = exchange->transfer->session;
    export out = {.exchange = exchange, .carrier = exchange->carrier, .pool = TB_NONE};
    count_ends(&out);
    uint64_t bytes = (uint64_t)out.header.ends * sizeof *out.ends + out.header.words * sizeof *out.words;
    if (bytes > MOST_EXPORT_BYTES) {
        return tb_fail(err, TB_EUNSUPPORTED, session->options.rank, 0,
                       "the places of %u chunks for rank %d take %llu bytes, more than %d", out.header.ends,
                       exchange->peer->rank, (unsigned long long)bytes, MOST_EXPORT_BYTES);
    }
    out.region_of = malloc((session->region_count + 1) * sizeof *out.region_of);
    out.regions = calloc(session->region_count + 1, sizeof *out.regions);
    out.ends = calloc((size_t)out.header.ends + 1, sizeof *out.ends);
    out.words = calloc(out.header.words + 1, sizeof *out.words);
    out.blobs = calloc(session->region_count + 1, TB_BLOB_BYTES);
    int32_t code;
    if (out.region_of == NULL || out.regions == NULL || out.ends == NULL || out.words == NULL || out.blobs == NULL) {
        code = tb_fail(err, TB_ENO_MEMORY, session->options.rank, 0, "no memory for an export of %llu bytes",
                       (unsigned long long)bytes);
    } else {
        memset(out.region_of, 0xff, (session->region_count + 1) * sizeof *out.region_of);
        code = add_ends(&out, err);
    }
    if (code == TB_OK && out.carrier->describe_session != NULL) {
        code = out.carrier->describe_session(session, out.session_blob, &out.header.session_bytes, err);
    }
    if (code == TB_OK && out.carrier->described != NULL) {
        out.carrier->described(exchange);
    }
    if (code == TB_OK) {
        out.header.bytes = sizeof out.header + out.header.regions * sizeof *out.regions + bytes + out.header.blob_bytes
                         + out.header.session_bytes;
        say(&out);
    }
    free(out.blobs);
    free(out.words);
    free(out.ends);
    free(out.regions);
    free(out.region_of);
    return code;
}
