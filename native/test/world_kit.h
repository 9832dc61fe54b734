/* A world of sessions in one process, over either transport, that tests drive. */
#ifndef TB_WORLD_KIT_H
#define TB_WORLD_KIT_H

#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "carriers/registry.h"
#include "program_build.h"

enum { WORLD_RANKS = 8 };
#define SECOND 1000000000ull

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                          \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

typedef struct world_options {
    uint32_t kind, threads, connections;
    bool no_answers; /* leave handshakes to the test */
    uint32_t peer_timeout_ms, quiesce_ms; /* 0: the usual ones */
    uint32_t carriers;
    bool shared; /* tensors lie in shared memory */
} world_options;

typedef struct world {
    world_options options;
    int ranks;
    uint64_t hub;
    uint64_t session[WORLD_RANKS];
    bool open[WORLD_RANKS];
    uint32_t port[WORLD_RANKS];
    int event_fd[WORLD_RANKS];
    uint64_t transfer[WORLD_RANKS];
    uint8_t secret[WORLD_RANKS];
    uint8_t *memory[WORLD_RANKS][KIT_TENSORS][2];
    uint64_t span[WORLD_RANKS][KIT_TENSORS][2];
    uint64_t pool[WORLD_RANKS];
    kit_program program[WORLD_RANKS];
    tb_event *events[WORLD_RANKS];
    int event_count[WORLD_RANKS];
    bool linked; /* ranks 0 and 2 are, at the next prepare */
} world;

static inline uint64_t test_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static inline void world_open_rank(world *w, int rank) {
    tb_error err;
    tb_session_options options = {.struct_bytes = sizeof options,
                                  .kind = w->options.kind,
                                  .rank = rank,
                                  .world = w->ranks,
                                  .hub = w->hub,
                                  .connections = w->options.connections,
                                  .io_threads = w->options.threads,
                                  .peer_timeout_ms = w->options.peer_timeout_ms,
                                  .quiesce_ms = w->options.quiesce_ms ? w->options.quiesce_ms : 5000,
                                  .carriers = w->options.carriers,
                                  .listen_host = "127.0.0.1"};
    int32_t code = tb_session_open(&options, &w->session[rank], &w->event_fd[rank], &err);
    if (code != TB_OK) {
        fprintf(stderr, "open: %s\n", err.message);
    }
    CHECK(code == TB_OK);
    w->open[rank] = true;
    if (w->options.kind == TB_BACKEND_TCP) {
        CHECK(tb_session_port(w->session[rank], &w->port[rank], &err) == TB_OK);
    }
}

static inline void world_introduce(world *w) {
    for (int a = 0; a < w->ranks && w->options.kind == TB_BACKEND_TCP; a++) {
        for (int b = 0; b < w->ranks; b++) {
            if (a != b && w->open[a] && w->open[b]) {
                CHECK(tb_session_set_peer(w->session[a], b, "127.0.0.1", w->port[b], NULL) == TB_OK);
            }
        }
    }
}

static inline void world_start(world *w, const world_options *options, int ranks) {
    memset(w, 0, sizeof *w);
    w->options = *options;
    w->options.peer_timeout_ms = options->peer_timeout_ms ? options->peer_timeout_ms : 10000;
    w->ranks = ranks;
    CHECK(tb_hub_create(&w->hub, NULL) == TB_OK);
}

static inline void world_open(world *w, const world_options *options, int ranks) {
    world_start(w, options, ranks);
    for (int rank = 0; rank < ranks; rank++) {
        world_open_rank(w, rank);
    }
    world_introduce(w);
}

static inline void world_close_rank(world *w, int rank) {
    if (w->open[rank]) {
        tb_error err = {0};
        int32_t code = tb_session_close(w->session[rank], &err);
        if (code != TB_OK) {
            fprintf(stderr, "close: %s\n", err.message);
        }
        CHECK(code == TB_OK);
        close(w->event_fd[rank]);
        w->open[rank] = false;
    }
}

static inline void world_forget_memory(world *w, int rank, int tensor, int kind) {
    uint8_t *memory = w->memory[rank][tensor][kind];
    w->memory[rank][tensor][kind] = NULL;
    if (w->options.shared && memory != NULL) {
        tb_shared_unmap((uint64_t)(uintptr_t)memory, w->span[rank][tensor][kind], NULL);
    } else {
        free(memory);
    }
}

static inline void world_close(world *w) {
    for (int rank = 0; rank < w->ranks; rank++) {
        world_close_rank(w, rank);
        free(w->events[rank]);
        free(w->program[rank].bytes);
        for (int t = 0; t < KIT_TENSORS; t++) {
            world_forget_memory(w, rank, t, 0);
            world_forget_memory(w, rank, t, 1);
        }
    }
    CHECK(tb_hub_destroy(w->hub, NULL) == TB_OK);
}

/*
 * Not HMAC, which C code does not have; what matters here is that it depends on secret, role and both hellos.
 */
static inline void world_proof(uint8_t secret, uint8_t role, const tb_event *event, uint8_t proof[32]) {
    for (int i = 0; i < 32; i++) {
        uint8_t seed[2] = {(uint8_t)(secret + i), role};
        proof[i] = (uint8_t)tb_crc32c(tb_crc32c(0, seed, 2), event->handshake_hello, 256);
    }
}

static inline void world_answer(world *w, int rank, const tb_event *event) {
    uint8_t proof[32];
    bool own = event->handshake_step == 0;
    uint32_t role = own ? event->handshake_role : 1 - event->handshake_role;
    world_proof(w->secret[rank], (uint8_t)role, event, proof);
    uint32_t accept = own || memcmp(proof, event->handshake_proof, 32) == 0;
    tb_session_handshake(w->session[rank], event->connection, proof, accept, NULL);
}

/* Takes all events of all ranks; waits a little if there are none. */
static inline void world_pump(world *w, int milliseconds) {
    struct pollfd fds[WORLD_RANKS];
    int count = 0;
    for (int rank = 0; rank < w->ranks; rank++) {
        if (w->open[rank]) {
            fds[count++] = (struct pollfd){.fd = w->event_fd[rank], .events = POLLIN};
        }
    }
    poll(fds, (nfds_t)count, milliseconds);
    for (int rank = 0; rank < w->ranks; rank++) {
        while (w->open[rank]) {
            tb_event event;
            CHECK(tb_session_next_event(w->session[rank], &event, NULL) == TB_OK);
            if (event.kind == TB_EVENT_NONE) {
                break;
            }
            if (event.kind == TB_EVENT_HANDSHAKE && !w->options.no_answers) {
                world_answer(w, rank, &event);
                continue;
            }
            w->events[rank] = realloc(w->events[rank], ((size_t)w->event_count[rank] + 1) * sizeof event);
            w->events[rank][w->event_count[rank]++] = event;
        }
    }
}

/* The first event of that kind, which is taken out; false if none came in time. */
static inline bool world_take(world *w, int rank, uint32_t kind, uint64_t timeout, tb_event *event) {
    uint64_t until = test_now() + timeout;
    do {
        for (int i = 0; i < w->event_count[rank]; i++) {
            if (w->events[rank][i].kind == kind) {
                *event = w->events[rank][i];
                w->event_count[rank]--;
                memmove(&w->events[rank][i], &w->events[rank][i + 1],
                        (size_t)(w->event_count[rank] - i) * sizeof *event);
                return true;
            }
        }
        world_pump(w, 20);
    } while (test_now() < until);
    return false;
}

static inline void world_expect(world *w, int rank, uint32_t kind, int32_t code, int32_t origin,
                                tb_event *event) {
    tb_event got;
    bool came = world_take(w, rank, kind, 20 * SECOND, &got);
    if (!came || got.error.code != code || (origin >= -1 && code != TB_OK && got.error.rank != origin)) {
        fprintf(stderr, "rank %d, event %u: code %d (wanted %d) of rank %d (wanted %d): %s\n", rank, kind,
                came ? got.error.code : -1, code, got.error.rank, origin,
                came ? got.error.message : "nothing came");
        exit(1);
    }
    if (event != NULL) {
        *event = got;
    }
}

static inline uint8_t pattern(int rank, uint32_t tensor, uint64_t at) {
    return (uint8_t)((at * 131 + at / 251 + (uint64_t)rank * 17 + tensor * 29 + 3) & 0xff);
}

static inline uint8_t *world_memory(const world *w, uint64_t span) {
    uint64_t address;
    int32_t fd;
    if (!w->options.shared) {
        return aligned_alloc(4096, (span + 4095) / 4096 * 4096);
    }
    CHECK(tb_shared_create("test", span, &fd, &address, NULL) == TB_OK);
    close(fd);
    return (uint8_t *)(uintptr_t)address;
}

/* Memory of a rank's tensors: sources in a pattern, targets in 0xee, or what an earlier transfer left there. */
static inline void world_allocate(world *w, const kit *k, int rank) {
    kit_program *program = &w->program[rank];
    free(program->bytes);
    *program = kit_build(k, (uint32_t)rank, w->pool[rank]);
    for (uint32_t i = 0; i < program->buffer_count; i++) {
        uint32_t t = program->tensor[i];
        uint32_t kind = program->kind[i];
        uint64_t span = k->span[t][kind];
        if (w->memory[rank][t][kind] != NULL) {
            continue;
        }
        uint8_t *memory = world_memory(w, span);
        w->span[rank][t][kind] = span;
        for (uint64_t at = 0; at < span; at++) {
            memory[at] = kind == 0 ? pattern(rank, t, at) : 0xee;
        }
        w->memory[rank][t][kind] = memory;
        CHECK(tb_session_register(w->session[rank], (uint64_t)(uintptr_t)memory, span, NULL) == TB_OK);
    }
}

static inline int32_t world_prepare_code(world *w, const kit *k, int rank, uint32_t flags, uint64_t timeout,
                                         tb_error *err) {
    tb_binding bindings[2 * KIT_TENSORS];
    kit_program *program = &w->program[rank];
    for (uint32_t i = 0; i < program->buffer_count; i++) {
        uint8_t *memory = w->memory[rank][program->tensor[i]][program->kind[i]];
        bindings[i] =
            (tb_binding){(uint64_t)(uintptr_t)memory, k->span[program->tensor[i]][program->kind[i]]};
    }
    tb_member links[2] = {{0, rank == 2 ? TB_MEMBER_LINKED : 0}, {2, rank == 0 ? TB_MEMBER_LINKED : 0}};
    uint32_t link_count = w->linked && rank % 2 == 0 ? 2 : 0;
    return tb_transfer_prepare(w->session[rank], "batch", program->bytes, program->byte_count, bindings,
                                  program->buffer_count, flags, timeout, links, link_count, &w->transfer[rank],
                                  err);
}

static inline void world_prepare_rank(world *w, const kit *k, int rank, uint32_t flags, uint64_t timeout) {
    tb_error err = {0};
    world_allocate(w, k, rank);
    int32_t code = world_prepare_code(w, k, rank, flags, timeout, &err);
    if (code != TB_OK) {
        fprintf(stderr, "rank %d: prepare: %d %s\n", rank, code, err.message);
        exit(1);
    }
}

/* A carrier that pulls makes no checksums: there it goes without. */
static inline void world_prepare(world *w, const kit *k, uint32_t flags) {
    flags &= w->options.carriers > TB_CARRY_STREAM ? ~(uint32_t)TB_TRANSFER_CHECKSUM : ~0u;
    for (int rank = 0; rank < w->ranks; rank++) {
        world_prepare_rank(w, k, rank, flags, 20 * SECOND);
    }
    for (int rank = 0; rank < w->ranks; rank++) {
        world_expect(w, rank, TB_EVENT_PREPARED, TB_OK, -1, NULL);
    }
}

static inline void world_post(world *w, int rank, uint64_t round, uint64_t timeout) {
    tb_error err = {0};
    int32_t code = tb_transfer_post(w->session[rank], w->transfer[rank], round, timeout, &err);
    if (code != TB_OK) {
        fprintf(stderr, "rank %d: post: %d %s\n", rank, code, err.message);
        exit(1);
    }
}

static inline void world_round(world *w, uint64_t round) {
    for (int rank = 0; rank < w->ranks; rank++) {
        world_post(w, rank, round, 30 * SECOND);
    }
    for (int rank = 0; rank < w->ranks; rank++) {
        tb_event event;
        uint64_t at, done, total, staging;
        world_expect(w, rank, TB_EVENT_ROUND, TB_OK, -1, &event);
        CHECK(event.round == round);
        CHECK(tb_transfer_progress(w->session[rank], w->transfer[rank], &at, &done, &total, &staging, NULL)
              == TB_OK);
        CHECK(at == round && done == total);
        if (event.staging_high_water > staging) {
            fprintf(stderr, "rank %d took %lu bytes of staging, announced %lu\n", rank,
                    (unsigned long)event.staging_high_water, (unsigned long)staging);
            exit(1);
        }
    }
}

static inline void world_release(world *w) {
    for (int rank = 0; rank < w->ranks; rank++) {
        if (w->open[rank]) {
            CHECK(tb_transfer_release(w->session[rank], w->transfer[rank], NULL) == TB_OK);
        }
    }
}

#endif
