/*
 * What waits for what in a program: the order of the folds, the pool's size, and the dependents of each bucket. No lock
 * is needed.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/table.h"
#include "program/program.h"

static int32_t malformed(tb_error *err, uint32_t bucket, const char *what) {
    return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: bucket %u %s", bucket, what);
}

static int32_t no_memory(tb_error *err) {
    return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for tables of a program");
}

/* A bucket of the fold follows one with the same pieces, one position further; a first one has position 0. */
static int32_t check_fold_link(const tb_program *program, uint32_t index, tb_error *err) {
    const tb_bucket *bucket = &program->buckets[index];
    const tb_bucket *before = NULL;
    if (bucket->fold_after != TB_NONE) {
        if (bucket->fold_after >= program->header->bucket_count || !tb_bucket_folds(program, bucket->fold_after)) {
            return malformed(err, index, "is folded after one that is not folded");
        }
        before = &program->buckets[bucket->fold_after];
        if (before->chunk_count != bucket->chunk_count) {
            return malformed(err, index, "is folded after one that has other pieces");
        }
    }
    for (uint32_t i = 0; i < bucket->chunk_count; i++) {
        const tb_chunk *chunk = &program->chunks[bucket->first_chunk + i];
        const tb_piece *piece = &program->pieces[chunk->destination - TB_PIECE_BIT];
        uint32_t position = 0;
        if (before != NULL) {
            const tb_chunk *other = &program->chunks[before->first_chunk + i];
            if (other->destination != chunk->destination || other->fold_position == TB_NONE) {
                return malformed(err, index, "is folded after one that has other pieces");
            }
            position = other->fold_position + 1;
        }
        bool last = position == piece->contributions - 1;
        if (chunk->fold_position != position || last != ((bucket->flags & TB_BUCKET_COMPLETES) != 0)) {
            return malformed(err, index, "has a fold position that its piece does not have");
        }
    }
    return TB_OK;
}

/* Fills fold_next; *heads, by piece: the first bucket of its fold. */
static int32_t link_folds(tb_program *program, uint32_t *heads, uint32_t *folded, tb_error *err) {
    *folded = 0;
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        program->fold_next[b] = TB_NONE;
        if (!tb_bucket_folds(program, b)) {
            if (bucket->fold_after != TB_NONE || bucket->flags != 0) {
                return malformed(err, b, "is not folded, but says so");
            }
            continue;
        }
        ++*folded;
        int32_t code = check_fold_link(program, b, err);
        if (code != TB_OK) {
            return code;
        }
    }
    for (uint32_t b = 0; b < program->header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        if (!tb_bucket_folds(program, b)) {
            continue;
        }
        if (bucket->fold_after != TB_NONE) {
            if (program->fold_next[bucket->fold_after] != TB_NONE) {
                return malformed(err, b, "is folded after one that another follows");
            }
            program->fold_next[bucket->fold_after] = b;
            continue;
        }
        for (uint32_t i = 0; i < bucket->chunk_count; i++) {
            uint32_t *head = &heads[program->chunks[bucket->first_chunk + i].destination - TB_PIECE_BIT];
            if (*head != TB_NONE) {
                return malformed(err, b, "sets a piece that another sets");
            }
            *head = b;
        }
    }
    return TB_OK;
}

/*
 * Walks the folds by their first pieces. Grants count up a channel, so its buckets must come in their own
 * order.
 */
static int32_t walk_folds(tb_program *program, const uint32_t *heads, uint32_t folded,
                          uint32_t *next_sequence, tb_error *err) {
    for (uint32_t piece = 0; piece < program->header->piece_count; piece++) {
        uint32_t b = heads[piece];
        if (b == TB_NONE) {
            return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: nothing sets piece %u", piece);
        }
        if (program->chunks[program->buckets[b].first_chunk].destination != TB_PIECE_BIT + piece) {
            continue; /* a later piece of a bucket that has been walked */
        }
        for (; b != TB_NONE; b = program->fold_next[b]) {
            uint32_t sequence = tb_bucket_sequence(program, b);
            if (next_sequence[program->buckets[b].channel]++ != sequence) {
                return malformed(err, b, "is folded out of the order of its channel");
            }
            program->fold_order[program->fold_count++] = b;
        }
    }
    if (program->fold_count != folded) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: folds wait in a circle");
    }
    return TB_OK;
}

int32_t tb_program_order_folds(tb_program *program, tb_error *err) {
    const tb_program_header *header = program->header;
    uint32_t folded;
    int32_t code = TB_ENO_MEMORY;
    uint32_t *heads = tb_table(header->piece_count, sizeof *heads);
    uint32_t *next_sequence = tb_table(header->channel_count, sizeof *next_sequence);
    program->fold_next = tb_table(header->bucket_count, sizeof *program->fold_next);
    program->fold_order = tb_table(header->bucket_count, sizeof *program->fold_order);
    if (heads == NULL || next_sequence == NULL || program->fold_next == NULL || program->fold_order == NULL) {
        no_memory(err);
        goto out;
    }
    memset(heads, 0xff, header->piece_count * sizeof *heads);
    code = link_folds(program, heads, &folded, err);
    if (code == TB_OK) {
        code = walk_folds(program, heads, folded, next_sequence, err);
    }
    if (code == TB_OK) {
        code = tb_program_check_pool(program, err);
    }
out:
    free(next_sequence);
    free(heads);
    return code;
}

/* The buckets that wait for each bucket, as one array cut into rows. */
static int32_t find_dependents(tb_program *program, tb_error *err) {
    const tb_program_header *header = program->header;
    program->first_dependent = tb_table((uint64_t)header->bucket_count + 1, sizeof(uint32_t));
    program->dependents = tb_table(header->dependency_count, sizeof(uint32_t));
    if (program->first_dependent == NULL || program->dependents == NULL) {
        return no_memory(err);
    }
    uint64_t total = 0;
    for (uint32_t b = 0; b < header->bucket_count; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        if (bucket->first_dependency > header->dependency_count
            || bucket->dependency_count > header->dependency_count - bucket->first_dependency) {
            return malformed(err, b, "has dependencies out of range");
        }
        bool waits = bucket->dependency_count > 0;
        if (waits && (tb_bucket_channel(program, b)->direction == TB_RECEIVE || tb_bucket_folds(program, b))) {
            return malformed(err, b, "cannot wait: its sender starts it, or the fold does");
        }
        for (uint32_t i = 0; i < bucket->dependency_count; i++) {
            uint32_t on = program->dependencies[bucket->first_dependency + i];
            if (on >= header->bucket_count || on == b) {
                return malformed(err, b, "waits for one that does not exist");
            }
            program->first_dependent[on + 1]++;
        }
        total += bucket->dependency_count;
    }
    if (total > header->dependency_count) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: buckets share dependencies");
    }
    for (uint32_t b = 0; b < header->bucket_count; b++) {
        program->first_dependent[b + 1] += program->first_dependent[b];
    }
    return TB_OK;
}

static int32_t fill_dependents(tb_program *program, tb_error *err) {
    uint32_t buckets = program->header->bucket_count;
    uint32_t *fill = tb_table(buckets, sizeof *fill);
    if (fill == NULL) {
        return no_memory(err);
    }
    memcpy(fill, program->first_dependent, buckets * sizeof *fill);
    for (uint32_t b = 0; b < buckets; b++) {
        const tb_bucket *bucket = &program->buckets[b];
        for (uint32_t i = 0; i < bucket->dependency_count; i++) {
            program->dependents[fill[program->dependencies[bucket->first_dependency + i]]++] = b;
        }
    }
    free(fill);
    return TB_OK;
}

/*
 * Whoever waits takes its place in a list once all that it waits for have: a list of all is an order without
 * circles.
 */
static int32_t check_circles(const tb_program *program, tb_error *err) {
    uint32_t buckets = program->header->bucket_count;
    uint32_t *waits = tb_table(buckets, sizeof *waits);
    uint32_t *list = tb_table(buckets, sizeof *list);
    int32_t code = TB_OK;
    if (waits == NULL || list == NULL) {
        code = no_memory(err);
        goto out;
    }
    uint32_t listed = 0;
    for (uint32_t b = 0; b < buckets; b++) {
        waits[b] = program->buckets[b].dependency_count + (program->buckets[b].fold_after != TB_NONE);
        if (waits[b] == 0) {
            list[listed++] = b;
        }
    }
    for (uint32_t i = 0; i < listed; i++) {
        uint32_t b = list[i];
        for (uint32_t d = program->first_dependent[b]; d < program->first_dependent[b + 1]; d++) {
            if (--waits[program->dependents[d]] == 0) {
                list[listed++] = program->dependents[d];
            }
        }
        uint32_t next = program->fold_next[b];
        if (next != TB_NONE && --waits[next] == 0) {
            list[listed++] = next;
        }
    }
    if (listed != buckets) {
        code = tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "program: buckets wait in a circle");
    }
out:
    free(list);
    free(waits);
    return code;
}

int32_t tb_program_order_buckets(tb_program *program, tb_error *err) {
    int32_t code = find_dependents(program, err);
    if (code == TB_OK) {
        code = fill_dependents(program, err);
    }
    if (code == TB_OK) {
        code = check_circles(program, err);
    }
    return code == TB_OK ? tb_program_check_reads(program, err) : code;
}
