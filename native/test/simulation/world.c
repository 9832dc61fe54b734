/* The clock, chance, who lives, and the ranks of a schedule: their plan, memory and sessions. */
#include <errno.h>
#include <stdarg.h>
#include <unistd.h>

#include "base/available.h"
#include "base/clock.h"
#include "base/handle.h"
#include "identity/identity.h"
#include "kernels/dtype.h"
#include "sim.h"
#include "world.h"
#include "wire/loop.h"

sim *the_sim;
static int opening; /* the rank whose session is being made */

void sim_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(the_sim->why, sizeof the_sim->why, format, args);
    va_end(args);
    longjmp(the_sim->failed, 1);
}

uint64_t sim_random(uint64_t limit) {
    the_sim->random ^= the_sim->random >> 12;
    the_sim->random ^= the_sim->random << 25;
    the_sim->random ^= the_sim->random >> 27;
    return (the_sim->random * 0x2545f4914f6cdd1dull >> 16) % limit;
}

/* ---- in place of base/clock.c, base/available.c, base/invariant.c and identity/identity.c --------------- */

void tb_invariant_broken(const char *file, int line, const char *condition) {
    sim_fail("%s:%d: \"%s\" does not hold", file, line, condition);
}

uint64_t tb_now(void) {
    return the_sim->now;
}

uint64_t tb_deadline(uint64_t timeout_ns) {
    uint64_t deadline;
    return __builtin_add_overflow(the_sim->now, timeout_ns, &deadline) ? UINT64_MAX : deadline;
}

struct timespec tb_timespec(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

int tb_cond_init(pthread_cond_t *cond) {
    return pthread_cond_init(cond, NULL);
}

int32_t tb_identity_fill(tb_wire_identity *identity, tb_error *err) {
    (void)err;
    identity->pid = opening + 1;
    return TB_OK;
}

bool tb_identity_may_live(const tb_wire_identity *own, const tb_wire_identity *other) {
    (void)own; /* all of them are of one host */
    return tb_identity_lives(other);
}

uint64_t tb_memory_available(void) {
    return UINT64_MAX;
}

bool tb_identity_lives(const tb_wire_identity *identity) {
    return identity->pid >= 1 && identity->pid <= SIM_RANKS && the_sim->ranks[identity->pid - 1].alive;
}

/* ---- the plan ------------------------------------------------------------------------------------------- */

/*
 * Tensor 0 is a sum: each rank contributes to the pieces of rank 1, which sends them to rank 2 and keeps them, and rank 2
 * hands them on to rank 0. Tensor 2 is rank 0's, and comes to ranks 1 and 2 in stripes, which they hand on to each other as
 * they come. Tensor 1 is copied from each rank to each other, in a few buckets, behind the stripes in their channels.
 */
static void plan(kit *k, uint64_t pool[SIM_RANKS]) {
    uint64_t elements = 8 + sim_random(120);
    uint64_t pieces = 1 + sim_random(4);
    uint64_t part = 40 + sim_random(600);
    uint64_t parts = 1 + sim_random(3);
    uint64_t bytes = elements * 4;
    int came[4]; /* kit buckets of rank 2, by piece */
    kit_start(k, 1 + (uint32_t)sim_random(2), 1 + (uint32_t)sim_random(3));
    kit_tensor(k, 0, TB_INT32, bytes * pieces, TB_INT32, bytes * pieces);
    kit_tensor(k, 1, TB_UINT8, part * parts * 6, TB_UINT8, part * parts * 6);
    uint64_t stripes = 1 + sim_random(4); /* of each member */
    uint64_t stripe = 30 + sim_random(400);
    kit_tensor(k, 2, TB_UINT8, stripe * stripes * 2, TB_UINT8, stripe * stripes * 2);
    for (uint64_t p = 0; p < pieces; p++) {
        int piece = kit_piece_add(k, 1, 0, TB_INT32, 0, elements, 1, SIM_RANKS);
        for (uint32_t member = 0; member < SIM_RANKS; member++) {
            kit_bucket *bucket = kit_bucket_add(k, 0, member, 1, 0);
            bucket->fold_after = member == 0 ? -1 : k->bucket_count - 2;
            kit_reduce(k, bucket, 0, member, kit_run((int64_t)(p * bytes), (int64_t)bytes), piece);
        }
        int complete = k->bucket_count - 1;
        kit_end there = kit_run((int64_t)(p * bytes), (int64_t)bytes);
        for (uint32_t target = 1; target <= 2; target++) {
            kit_bucket *bucket = kit_bucket_add(k, 1, 1, target, 1);
            bucket->dependencies[bucket->dependency_count++] = complete;
            kit_copy(k, bucket, 0, elements, kit_in_piece(piece), there);
        }
        came[p] = k->bucket_count - 1;
    }
    /* Handed on one by one, or all at once. */
    uint64_t at_once = sim_random(2) == 0 ? 1 : pieces;
    k->bucket_bytes = bytes * at_once > part ? bytes * at_once : part;
    k->bucket_bytes = k->bucket_bytes > stripe ? k->bucket_bytes : stripe;
    for (uint64_t p = 0; p < pieces; p += at_once) {
        kit_bucket *fanout = kit_bucket_add(k, 2, 2, 0, 2);
        for (uint64_t i = p; i < p + at_once; i++) {
            kit_end there = kit_run((int64_t)(i * bytes), (int64_t)bytes);
            fanout->dependencies[fanout->dependency_count++] = came[i];
            kit_copy(k, fanout, 0, elements, there, there);
        }
    }
    for (uint64_t i = 0; i < 2 * stripes; i++) {
        uint32_t member = 1 + (uint32_t)(i % 2);
        kit_end there = kit_run((int64_t)(i * stripe), (int64_t)stripe);
        kit_copy(k, kit_bucket_add(k, 1, 0, member, 1), 2, stripe, there, there);
        int arrived = k->bucket_count - 1;
        kit_bucket *handed = kit_bucket_add(k, 2, member, 3 - member, 2);
        handed->dependencies[handed->dependency_count++] = arrived;
        kit_copy(k, handed, 2, stripe, there, there);
    }
    int64_t at = 0;
    for (uint32_t source = 0; source < SIM_RANKS; source++) {
        for (uint32_t target = 0; target < SIM_RANKS; target++) {
            for (uint64_t i = 0; i < parts && source != target; i++, at += (int64_t)part) {
                kit_copy(k, kit_bucket_add(k, 1, source, target, 1), 1, part, kit_run(at, (int64_t)part),
                         kit_run(at, (int64_t)part));
            }
        }
    }
    uint64_t piece_bytes = (bytes + 63) / 64 * 64;
    uint64_t fewest = pieces < 2 ? pieces : 2; /* a piece that is read, and one that comes */
    pool[1] = piece_bytes * (fewest + sim_random(pieces - fewest + 1));
}

/* ---- ranks ---------------------------------------------------------------------------------------------- */

static void open_rank(int number, uint64_t pool) {
    static const uint32_t carriers[] = {1u << SIM_STREAM, 1u << SIM_STREAM | 1u << SIM_MOVES,
                                        1u << SIM_STREAM | 1u << SIM_SUBMITS,
                                        1u << SIM_STREAM | 1u << SIM_MOVES | 1u << SIM_SUBMITS};
    sim_rank *rank = &the_sim->ranks[number];
    tb_session_options options = {.struct_bytes = sizeof options,
                                  .rank = number,
                                  .world = SIM_RANKS,
                                  .connections = the_sim->connections,
                                  .io_threads = 1,
                                  .peer_timeout_ms = 10000,
                                  .quiesce_ms = 5000,
                                  .carriers = carriers[sim_random(4)]};
    tb_binding bindings[2 * KIT_TENSORS];
    tb_error err = {0};
    opening = number;
    SIM_CHECK(tb_session_make(&options, &sim_backend, sim_carriers, NULL, &rank->session, &rank->event_fd, &err) == TB_OK,
              "rank %d opens no session: %s", number, err.message);
    rank->alive = true;
    SIM_CHECK(tb_handle_add(TB_HANDLE_SESSION, rank->session, NULL, &rank->handle, &err) == TB_OK, "no handle");
    rank->program = kit_build(&the_sim->k, (uint32_t)number, pool);
    for (uint32_t i = 0; i < rank->program.buffer_count; i++) {
        uint32_t t = rank->program.tensor[i];
        uint32_t kind = rank->program.kind[i];
        uint64_t span = the_sim->k.span[t][kind];
        uint8_t *memory = malloc(span);
        memset(memory, 0xee, span);
        for (uint64_t at = 0; at + 4 <= span && kind == 0; at += 4) {
            uint32_t word = (uint32_t)sim_random(1u << 31);
            memcpy(memory + at, &word, sizeof word);
        }
        rank->memory[t][kind] = memory;
        bindings[i] = (tb_binding){(uint64_t)(uintptr_t)memory, span};
        SIM_CHECK(tb_session_register(rank->handle, bindings[i].address, span, &err) == TB_OK, "%s", err.message);
    }
    uint64_t transfer;
    int32_t code = tb_transfer_prepare(rank->handle, "batch", rank->program.bytes, rank->program.byte_count, bindings,
                                       rank->program.buffer_count, the_sim->flags, SIM_TIMEOUT, NULL, 0, &transfer, &err);
    SIM_CHECK(code == TB_OK, "rank %d prepares nothing: %s", number, err.message);
    pthread_mutex_lock(&rank->session->lock);
    rank->transfer = tb_transfer_find(rank->session, transfer, NULL);
    pthread_mutex_unlock(&rank->session->lock);
}

void sim_open(void) {
    uint64_t pool[SIM_RANKS] = {0};
    the_sim->connections = 1 + (uint32_t)sim_random(2);
    the_sim->flags = sim_random(3) == 0 ? TB_TRANSFER_CHECKSUM : 0;
    plan(&the_sim->k, pool);
    for (int rank = 0; rank < SIM_RANKS; rank++) {
        open_rank(rank, pool[rank]);
    }
}

static void close_session(sim_rank *rank) {
    sim_forget_pulls(rank->session);
    rank->session->threads[0].job.transfer = NULL;
    rank->session->stale_pulls = 0;
    rank->transfer = NULL;
    tb_session_stop(rank->handle, NULL);
    tb_loop_end(rank->session->loops[0]);
    tb_session_close(rank->handle, NULL);
    close(rank->event_fd);
    rank->session = NULL;
}

void sim_kill(int number) {
    sim_rank *rank = &the_sim->ranks[number];
    rank->alive = false;
    for (int i = 0; i < SIM_LINKS; i++) {
        sim_link *link = &the_sim->links[i];
        if (link->used && (link->ranks[0] == number || link->ranks[1] == number)) {
            sim_cut(link, ECONNRESET);
        }
    }
    close_session(rank);
}

void sim_close(void) {
    for (int i = 0; i < SIM_RANKS; i++) {
        sim_rank *rank = &the_sim->ranks[i];
        if (rank->session != NULL) {
            rank->alive = false;
            close_session(rank);
        }
        free(rank->program.bytes);
        for (int t = 0; t < KIT_TENSORS; t++) {
            free(rank->memory[t][0]);
            free(rank->memory[t][1]);
        }
    }
    kit_free(&the_sim->k);
}
