/*
 * What a target learns of its sources' memory, and whether that fits its own program. The session's lock is held while
 * parts come in; what is checked and opened belongs to the thread that has taken it.
 */
#include <stdlib.h>
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "kernels/descriptor.h"
#include "kernels/dtype.h"
#include "round/select.h"
#include "round/transfer_meet.h"
#include "round/invariants.h"

/* ---- receiving: the lock is held ----------------------------------------------------------------------- */

static uint32_t chunks_of(const tb_program *program, uint32_t channel, uint32_t *first) {
    const tb_channel *row = &program->channels[channel];
    const tb_bucket *last = &program->buckets[row->first_bucket + row->bucket_count - 1];
    *first = program->buckets[row->first_bucket].first_chunk;
    return last->first_chunk + last->chunk_count - *first;
}

tb_import *tb_import_create(tb_exchange *exchange) {
    tb_import *import = calloc(1, sizeof *import);
    if (import == NULL) {
        return NULL;
    }
    const tb_program *program = &exchange->transfer->program;
    import->session = exchange->transfer->session;
    import->exchange = exchange;
    import->carrier = exchange->carrier;
    import->rank = exchange->peer->rank;
    import->remote = exchange->remote;
    import->identity = exchange->identity;
    memcpy(import->nonce, exchange->peer->nonce, sizeof import->nonce);
    for (int stage = 0; stage < TB_STAGES; stage++) {
        if (exchange->receive[stage] != TB_NONE) {
            import->first_end[stage] = import->end_count;
            import->end_count += chunks_of(program, exchange->receive[stage], &import->first_chunk[stage]);
        }
    }
    /* Every chunk may lie in a region of its own, and every descriptor have as many words as there can be. */
    import->limit =
        sizeof(tb_wire_export)
        + import->end_count
              * (sizeof(tb_wire_region) + TB_BLOB_BYTES + sizeof(tb_wire_end) + (3 + 2 * TB_MAX_DIMS) * sizeof(int64_t))
        + TB_SESSION_BLOB_BYTES;
    return import;
}

static void queue(tb_import *import) {
    tb_import **end = &import->session->imports;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    import->next = NULL;
    *end = import;
    import->state = TB_IMPORT_WAITING;
    tb_threads_offer_job(import->session);
}

static bool take_header(tb_import *import, const uint8_t *part, uint64_t bytes) {
    tb_wire_export header;
    if (bytes < sizeof header) {
        return false;
    }
    memcpy(&header, part, sizeof header);
    if (header.bytes > import->limit || header.ends != import->end_count || header.regions > import->end_count
        || header.words > import->limit / sizeof(int64_t)
        || header.blob_bytes > (uint64_t)header.regions * TB_BLOB_BYTES || header.session_bytes > TB_SESSION_BLOB_BYTES
        || header.bytes
               != sizeof header + (uint64_t)header.regions * sizeof(tb_wire_region)
                      + (uint64_t)header.ends * sizeof(tb_wire_end) + header.words * sizeof(int64_t)
                      + header.blob_bytes + header.session_bytes) {
        return false;
    }
    import->byte_count = header.bytes;
    import->region_count = header.regions;
    import->word_count = header.words;
    import->blob_bytes = header.blob_bytes;
    import->session_bytes = header.session_bytes;
    return true;
}

int32_t tb_import_take(tb_import *import, const uint8_t *part, uint64_t bytes, tb_error *err) {
    if (import->state != TB_IMPORT_COMING || (import->bytes == NULL && !take_header(import, part, bytes))
        || bytes > import->byte_count - import->got) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a malformed EXPORT");
    }
    if (import->bytes == NULL && (import->bytes = malloc(import->byte_count)) == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for an export of %llu bytes",
                       (unsigned long long)import->byte_count);
    }
    memcpy(import->bytes + import->got, part, bytes);
    import->got += bytes;
    if (import->got == import->byte_count) {
        import->regions = (const tb_wire_region *)(import->bytes + sizeof(tb_wire_export));
        import->ends = (const tb_wire_end *)(import->regions + import->region_count);
        import->words = (const int64_t *)(import->ends + import->end_count);
        import->blobs = (const uint8_t *)(import->words + import->word_count);
        import->session_blob = import->blobs + import->blob_bytes;
        queue(import);
    }
    return TB_OK;
}

void tb_import_drop(tb_import *import) {
    if (import->exchange != NULL) {
        import->exchange->import = NULL;
        import->exchange = NULL;
    }
    if (import->state == TB_IMPORT_COMING) {
        tb_import_free(import);
    } else if (import->state == TB_IMPORT_OPEN) {
        queue(import); /* a thread frees it */
    }
}

/* ---- checking: in a thread, without the lock ----------------------------------------------------------- */

static int32_t unfit(tb_error *err, const tb_import *import, uint32_t end, const char *what) {
    return tb_fail(err, TB_EPLAN_MISMATCH, import->rank, 0, "rank %d exports chunk %u %s", import->rank, end,
                   what);
}

static int32_t check_piece(const tb_import *import, uint32_t index, const tb_chunk *chunk, tb_error *err) {
    const tb_wire_end *end = &import->ends[index];
    const tb_wire_region *region = &import->regions[end->region];
    uint64_t bytes = chunk->elements * tb_dtype_size(end->dtype);
    if (end->at >= region->pieces || bytes > region->pieces_at) {
        return unfit(err, import, index, "in a pool that it does not fit");
    }
    return TB_OK;
}

static int32_t check_end(const tb_import *import, uint32_t index, const tb_chunk *chunk, tb_error *err) {
    const tb_wire_end *end = &import->ends[index];
    if (end->region >= import->region_count) {
        return unfit(err, import, index, "in no region");
    }
    if (end->dtype != chunk->source_dtype) {
        return unfit(err, import, index, "with another element type");
    }
    if (end->descriptor == TB_NONE) {
        return check_piece(import, index, chunk, err);
    }
    const tb_wire_region *region = &import->regions[end->region];
    uint64_t item = tb_dtype_size(end->dtype);
    uint64_t bytes;
    if (region->pieces != 0 || end->at > region->bytes || end->descriptor >= import->word_count) {
        return unfit(err, import, index, "beyond its region");
    }
    tb_error why;
    if (tb_descriptor_check(import->words + end->descriptor, import->word_count - end->descriptor, item,
                            region->bytes - end->at, &bytes, NULL, &why)
        != TB_OK) {
        return unfit(err, import, index, "beyond its region");
    }
    return bytes == chunk->elements * item ? TB_OK
                                           : unfit(err, import, index, "with another number of elements");
}

static int32_t check_regions(const tb_import *import, tb_error *err) {
    for (uint32_t i = 0; i < import->region_count; i++) {
        const tb_wire_region *region = &import->regions[i];
        uint64_t table;
        bool sound = !__builtin_mul_overflow(region->pieces, sizeof(uint64_t), &table)
                     && region->blob_at <= import->blob_bytes
                     && region->blob_bytes <= import->blob_bytes - region->blob_at
                     && region->pieces_at <= region->bytes && table <= region->bytes - region->pieces_at
                     && region->pieces_at % sizeof(uint64_t) == 0;
        if (!sound || (region->memory & ~import->carrier->memory) != 0) {
            return tb_fail(err, TB_EPLAN_MISMATCH, import->rank, 0, "rank %d exports a malformed region",
                           import->rank);
        }
    }
    return TB_OK;
}

static int32_t check(const tb_import *import, const tb_exchange *exchange, tb_error *err) {
    const tb_program *program = &exchange->transfer->program;
    int32_t code = check_regions(import, err);
    for (int stage = 0; stage < TB_STAGES && code == TB_OK; stage++) {
        if (exchange->receive[stage] == TB_NONE) {
            continue;
        }
        uint32_t first;
        uint32_t count = chunks_of(program, exchange->receive[stage], &first);
        for (uint32_t i = 0; i < count && code == TB_OK; i++) {
            code = check_end(import, import->first_end[stage] + i, &program->chunks[first + i], err);
        }
    }
    return code;
}

/* ---- opening ------------------------------------------------------------------------------------------- */

static tb_import *next_import(tb_session *session) {
    tb_import *import = session->imports;
    if (import != NULL) {
        session->imports = import->next;
        import->next = NULL;
    }
    return import;
}

/* What came of it: the pair is paired, or gets along without, or not at all. The lock is held. */
static void settle(tb_import *import, int32_t code, const tb_error *error) {
    tb_exchange *exchange = import->exchange;
    if (code == TB_OK) {
        import->state = TB_IMPORT_OPEN;
        tb_transfer_say_match(exchange);
        return;
    }
    exchange->import = NULL;
    import->exchange = NULL;
    const tb_carrier *stream = tb_carrier_by_way(import->session, TB_WAY_STREAM);
    uint32_t both = exchange->identity.carriers & import->session->identity.carriers;
    bool other_way = (both >> stream->number & 1) != 0;
    if (code == TB_EUNSUPPORTED && other_way) {
        exchange->carrier = stream;
        tb_transfer_say_match(exchange);
    } else {
        tb_transfer_refuse(exchange->transfer, code, error->rank, error->os_errno, error->message);
    }
}

bool tb_import_serve(tb_session *session) {
    pthread_mutex_lock(&session->lock);
    tb_import *import = next_import(session);
    tb_exchange *exchange = import == NULL ? NULL : import->exchange;
    if (exchange != NULL) {
        import->state = TB_IMPORT_OPENING;
        tb_touch_begin(exchange->transfer);
    }
    pthread_mutex_unlock(&session->lock);
    if (exchange != NULL) {
        tb_error error;
        int32_t code = check(import, exchange, &error);
        if (code == TB_OK) {
            code = import->carrier->open(import, exchange, &error);
        }
        pthread_mutex_lock(&session->lock);
        tb_touch_end(exchange->transfer, 1);
        if (import->exchange != NULL) {
            settle(import, code, &error);
        }
        bool open = import->exchange != NULL;
        tb_transfer_end_late(exchange->transfer);
        tb_transfer_check_prepared(exchange->transfer);
        pthread_mutex_unlock(&session->lock);
        if (open) {
            return true;
        }
    }
    if (import != NULL) {
        tb_import_free(import);
    }
    return import != NULL;
}

void tb_import_free(tb_import *import) {
    import->carrier->close(import);
    free(import->bytes);
    free(import);
}
