/*
 * Checks that reduced pieces are read only when they are complete, and that their pool never stops the folds. No lock
 * is needed.
 */
#include <stdlib.h>

#include "base/error.h"
#include "base/table.h"
#include "program/program.h"

static int32_t no_memory(tb_error *err) {
    return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for tables of a program");
}

static bool reads_piece(const tb_chunk *chunk) {
    return chunk->source != TB_NONE && chunk->source >= TB_PIECE_BIT;
}

/* A fold: the pieces of one bucket of stage 0, which take their place in the pool together. */
typedef struct fold {
    uint64_t begin; /* bytes of all pieces placed before it */
    uint64_t end;
    uint64_t oldest; /* begin of the oldest piece that is still to be read when this one is placed */
} fold;

/*
 * Places the pieces one after the other on an endless line. Gives the number of folds, and of each piece its
 * fold.
 */
static uint32_t place_folds(const tb_program *program, fold *folds, uint32_t *fold_of, uint64_t *begin) {
    uint32_t count = 0;
    uint64_t line = 0;
    for (uint32_t i = 0; i < program->fold_count; i++) {
        const tb_bucket *bucket = &program->buckets[program->fold_order[i]];
        if (bucket->fold_after != TB_NONE) {
            continue;
        }
        folds[count].begin = line;
        for (uint32_t c = 0; c < bucket->chunk_count; c++) {
            uint32_t piece = program->chunks[bucket->first_chunk + c].destination - TB_PIECE_BIT;
            begin[piece] = line;
            fold_of[piece] = count;
            line += program->pieces[piece].pool_bytes;
        }
        folds[count].end = line;
        folds[count].oldest = folds[count].begin;
        count++;
    }
    return count;
}

/*
 * A bucket that reads pieces keeps its oldest one until the fold of its newest one is complete. Everything
 * older can have been read and given back when a fold is placed. Pieces are given back in their order, so
 * what lies between two that are kept is kept as well. A piece never wraps around the ring's end, which
 * wastes less than the largest piece, and nothing if all pieces fit one after the other.
 */
static int32_t check_need(const tb_program *program, fold *folds, uint32_t count, const uint32_t *fold_of,
                          const uint64_t *begin, tb_error *err) {
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        uint64_t oldest = UINT64_MAX;
        uint32_t newest = 0;
        for (uint32_t c = bucket->first_chunk; c < bucket->first_chunk + bucket->chunk_count; c++) {
            if (!reads_piece(&program->chunks[c])) {
                continue;
            }
            uint32_t piece = program->chunks[c].source - TB_PIECE_BIT;
            oldest = begin[piece] < oldest ? begin[piece] : oldest;
            newest = fold_of[piece] > newest ? fold_of[piece] : newest;
        }
        if (oldest < folds[newest].oldest) {
            folds[newest].oldest = oldest;
        }
    }
    uint64_t most = 0;
    uint64_t largest = 0;
    uint64_t oldest = UINT64_MAX;
    for (uint32_t i = count; i-- > 0;) {
        oldest = folds[i].oldest < oldest ? folds[i].oldest : oldest;
        most = folds[i].end - oldest > most ? folds[i].end - oldest : most;
    }
    for (uint32_t i = 0; i < program->header->piece_count; i++) {
        largest = program->pieces[i].pool_bytes > largest ? program->pieces[i].pool_bytes : largest;
    }
    bool wraps = program->header->pool_bytes < folds[count - 1].end;
    if (wraps && (program->header->pool_bytes < most || program->header->pool_bytes - most < largest)) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0,
                       "program: a pool of %llu bytes is too small for a piece of %llu and one of %llu",
                       (unsigned long long)program->header->pool_bytes, (unsigned long long)most,
                       (unsigned long long)largest);
    }
    return TB_OK;
}

int32_t tb_program_check_pool(const tb_program *program, tb_error *err) {
    uint32_t pieces = program->header->piece_count;
    if (pieces == 0) {
        return TB_OK;
    }
    uint64_t line = 0;
    for (uint32_t i = 0; i < pieces; i++) {
        if (__builtin_add_overflow(line, program->pieces[i].pool_bytes, &line)) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: bytes of pieces overflow");
        }
    }
    if (program->header->pool_bytes >= line) {
        return TB_OK; /* every piece has a place of its own */
    }
    int32_t code = TB_OK;
    fold *folds = tb_table(pieces, sizeof *folds);
    uint32_t *fold_of = tb_table(pieces, sizeof *fold_of);
    uint64_t *begin = tb_table(pieces, sizeof *begin);
    if (folds == NULL || fold_of == NULL || begin == NULL) {
        code = no_memory(err);
    } else {
        uint32_t count = place_folds(program, folds, fold_of, begin);
        code = check_need(program, folds, count, fold_of, begin, err);
    }
    free(begin);
    free(fold_of);
    free(folds);
    return code;
}

/*
 * completes: by piece, the bucket that completes its fold. seen: by bucket, one more than the last that waits
 * for it.
 */
static int32_t check_bucket_reads(const tb_program *program, uint32_t index, const uint32_t *completes,
                                  uint32_t *seen, uint32_t *readers, tb_error *err) {
    const tb_bucket *bucket = &program->buckets[index];
    for (uint32_t i = 0; i < bucket->dependency_count; i++) {
        seen[program->dependencies[bucket->first_dependency + i]] = index + 1;
    }
    for (uint32_t c = bucket->first_chunk; c < bucket->first_chunk + bucket->chunk_count; c++) {
        if (!reads_piece(&program->chunks[c])) {
            continue;
        }
        uint32_t piece = program->chunks[c].source - TB_PIECE_BIT;
        readers[piece]++;
        if (seen[completes[piece]] != index + 1) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0,
                           "program: bucket %u reads piece %u before it is whole", index, piece);
        }
    }
    return TB_OK;
}

int32_t tb_program_check_reads(const tb_program *program, tb_error *err) {
    uint32_t pieces = program->header->piece_count;
    int32_t code = TB_OK;
    uint32_t *completes = tb_table(pieces, sizeof *completes);
    uint32_t *readers = tb_table(pieces, sizeof *readers);
    uint32_t *seen = tb_table(program->header->bucket_count, sizeof *seen);
    if (completes == NULL || readers == NULL || seen == NULL) {
        code = no_memory(err);
        goto out;
    }
    for (uint32_t i = 0; i < program->fold_count; i++) {
        const tb_bucket *bucket = &program->buckets[program->fold_order[i]];
        for (uint32_t c = 0; c < bucket->chunk_count; c++) {
            /* The order of a fold is the order of this list, so the last one stays. */
            completes[program->chunks[bucket->first_chunk + c].destination - TB_PIECE_BIT] =
                program->fold_order[i];
        }
    }
    for (uint32_t b = 0; b < program->header->bucket_count && code == TB_OK; b++) {
        code = check_bucket_reads(program, b, completes, seen, readers, err);
    }
    for (uint32_t i = 0; i < pieces && code == TB_OK; i++) {
        if (readers[i] != program->pieces[i].readers) {
            code = tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: piece %u has %u readers, but says that it has %u", i,
                           readers[i], program->pieces[i].readers);
        }
    }
out:
    free(seen);
    free(readers);
    free(completes);
    return code;
}
