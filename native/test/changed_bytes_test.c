/*
 * A connection that changes what it carries: two sessions of TCP, and between them a relay that changes one bit, in every
 * frame that they say to each other. Somebody notices each time, no round that ends well has wrong bytes, nobody waits for
 * what does not come, and the next round succeeds.
 *
 * changed_bytes_test [SEED]
 */
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/error.h"
#include "evil_peer.h"

enum { RECORD = 1 << 17, PART = 700 };

/* One connection at a time; of the bytes of both directions the first that changes is the one of `at`. */
typedef struct relay {
    pthread_t thread;
    int listener;
    uint16_t port;
    uint32_t target;
    int stop[2];
    atomic_int connections;
    /* What each direction of the first connection carried, and what is to be changed. */
    uint8_t record[2][RECORD];
    size_t count[2];
    atomic_int direction; /* -1: nothing is changed */
    size_t at;
    uint8_t bit;
    atomic_bool changed;
} relay;

static uint64_t state = 1;
static int changes;

static uint64_t below(uint64_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % limit;
}

static void pass(relay *r, int direction, uint8_t *bytes, size_t count) {
    size_t from = r->count[direction];
    if (atomic_load(&r->connections) > 1) {
        return; /* those that come after the first one tell the truth */
    }
    CHECK(from + count <= RECORD);
    memcpy(r->record[direction] + from, bytes, count);
    r->count[direction] += count;
    if (direction == atomic_load(&r->direction) && r->at >= from && r->at < from + count) {
        bytes[r->at - from] ^= r->bit;
        atomic_store(&r->changed, true);
    }
}

static bool forward(relay *r, int direction, int from, int to) {
    uint8_t bytes[4096];
    ssize_t got = recv(from, bytes, sizeof bytes, 0);
    if (got <= 0) {
        return false;
    }
    pass(r, direction, bytes, (size_t)got);
    return send(to, bytes, (size_t)got, MSG_NOSIGNAL) == got;
}

static int dial(uint32_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    return connect(fd, (struct sockaddr *)&at, sizeof at) == 0 ? fd : (close(fd), -1);
}

static void *serve(void *argument) {
    relay *r = argument;
    int ends[2] = {-1, -1};
    for (;;) {
        struct pollfd fds[4] = {{.fd = r->stop[0], .events = POLLIN},
                                {.fd = ends[0] < 0 ? r->listener : -1, .events = POLLIN},
                                {.fd = ends[0], .events = POLLIN},
                                {.fd = ends[1], .events = POLLIN}};
        CHECK(poll(fds, 4, -1) > 0);
        if (fds[0].revents != 0) {
            break;
        }
        if (fds[1].revents != 0) {
            int yes = 1;
            ends[0] = accept(r->listener, NULL, NULL);
            ends[1] = dial(r->target);
            CHECK(ends[0] >= 0);
            atomic_fetch_add(&r->connections, 1);
            setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            setsockopt(ends[1], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        }
        bool ended = ends[0] >= 0 && ends[1] < 0;
        for (int i = 0; i < 2 && !ended; i++) {
            ended = fds[2 + i].revents != 0 && !forward(r, i, ends[i], ends[1 - i]);
        }
        for (int i = 0; i < 2 && ended; i++) {
            close(ends[i]);
            ends[i] = -1;
        }
    }
    close(ends[0]);
    close(ends[1]);
    return NULL;
}

static void relay_start(relay *r) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t length = sizeof at;
    memset(r, 0, sizeof *r);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    r->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(r->listener >= 0 && bind(r->listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(r->listener, 8) == 0);
    CHECK(getsockname(r->listener, (struct sockaddr *)&at, &length) == 0 && pipe(r->stop) == 0);
    r->port = ntohs(at.sin_port);
    atomic_store(&r->direction, -1);
}

static void relay_end(relay *r) {
    CHECK(write(r->stop[1], "", 1) == 1 && pthread_join(r->thread, NULL) == 0);
    close(r->stop[0]);
    close(r->stop[1]);
    close(r->listener);
}

/* Both ranks send to each other: buckets, grants and receipts both ways. */
static void plan(kit *k) {
    kit_start(k, 2, 2);
    kit_tensor(k, 0, TB_UINT8, 4 * PART, TB_UINT8, 4 * PART);
    for (int part = 0; part < 4; part++) {
        uint32_t from = (uint32_t)part % 2;
        kit_end run = kit_run(part * PART, PART);
        kit_copy(k, kit_bucket_add(k, 1, from, 1 - from, 0), 0, PART, run, run);
    }
}

static void check_memory(const world *w) {
    for (uint64_t at = 0; at < 4 * PART; at++) {
        int from = (int)(at / PART % 2);
        CHECK(w->memory[1 - from][0][1][at] == pattern(from, 0, at));
    }
}

/* Takes the one of two errors that says why: others follow from it. */
static int32_t first_cause(int32_t one, int32_t other) {
    return one == TB_OK || other == TB_ECHECKSUM ? other : one;
}

/* Takes the events that have come. Answers the error among theirs that says why, or TB_OK if none failed. */
static int32_t heard(world *w) {
    int32_t code = TB_OK;
    for (int rank = 0; rank < 2; rank++) {
        for (int i = 0; i < w->event_count[rank]; i++) {
            code = first_cause(code, w->events[rank][i].error.code);
        }
        w->event_count[rank] = 0;
    }
    return code;
}

/*
 * Waits for one event of that kind at each rank. If one fails, the other is told by the store, which is a call here: the
 * peer may not hear of it. The first error, or TB_OK.
 */
static int32_t both(world *w, uint32_t kind, const bool expected[2]) {
    bool waits[2] = {expected[0], expected[1]};
    int32_t code = TB_OK;
    for (uint64_t until = test_now() + 30 * SECOND; waits[0] || waits[1];) {
        CHECK(test_now() < until);
        for (int rank = 0; rank < 2; rank++) {
            tb_event event;
            if (waits[rank] && world_take(w, rank, kind, 0, &event)) {
                waits[rank] = false;
                code = code == TB_OK ? event.error.code : code;
                if (event.error.code != TB_OK && waits[1 - rank]) {
                    tb_transfer_cancel(w->session[1 - rank], w->transfer[1 - rank], TB_ECANCELLED, NULL);
                }
            }
        }
    }
    return code;
}

static int32_t prepare(world *w, const kit *k, uint32_t flags) {
    static const bool all[2] = {true, true};
    world_prepare_rank(w, k, 0, flags, 20 * SECOND);
    world_prepare_rank(w, k, 1, flags, 20 * SECOND);
    return both(w, TB_EVENT_PREPARED, all);
}

/* A peer that was lost in the middle of a round may still read what was shared with it: that stays mapped, for good. */
static void close_rank(world *w, int rank) {
    int32_t code = tb_session_close(w->session[rank], NULL);
    CHECK(code == TB_OK || (code == TB_EQUARANTINED && w->options.shared));
    close(w->event_fd[rank]);
    w->open[rank] = false;
    if (code == TB_EQUARANTINED) {
        w->memory[rank][0][0] = w->memory[rank][0][1] = NULL;
    }
}

static const world_options ways[] = {
    {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .quiesce_ms = 100},
    {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .quiesce_ms = 100, .carriers = TB_CARRY_SHM, .shared = true},
};

/* One round, and one more after it. Gives the code under which somebody noticed that a bit had changed. */
static int32_t run(relay *r, const world_options *way) {
    world w;
    kit k;
    tb_error err;
    plan(&k);
    world_open(&w, way, 2);
    r->target = w.port[1];
    CHECK(pthread_create(&r->thread, NULL, serve, r) == 0);
    CHECK(tb_session_set_peer(w.session[0], 1, "127.0.0.1", r->port, NULL) == TB_OK);
    uint32_t flags = way->carriers == TB_CARRY_SHM ? 0 : TB_TRANSFER_CHECKSUM;
    int32_t code = prepare(&w, &k, flags);
    if (code == TB_OK) {
        bool posted[2];
        for (int rank = 0; rank < 2; rank++) {
            /* The peer may be lost by now. */
            posted[rank] = tb_transfer_post(w.session[rank], w.transfer[rank], 1, 20 * SECOND, &err) == TB_OK;
            code = posted[rank] ? code : err.code;
        }
        int32_t ended = both(&w, TB_EVENT_ROUND, posted);
        code = code == TB_OK ? ended : code;
        if (code == TB_OK) {
            check_memory(&w);
        }
    }
    int32_t noticed = heard(&w);
    for (uint64_t until = test_now() + 10 * SECOND; atomic_load(&r->changed) && noticed == TB_OK && code == TB_OK;) {
        CHECK(test_now() < until);
        world_pump(&w, 20);
        noticed = heard(&w);
    }
    bool once_more = atomic_exchange(&r->direction, -1) >= 0; /* from here on nothing is changed */
    world_release(&w);
    if (once_more) {
        /* One side may still hold the connection that the other one has ended. */
        for (int tries = 0; prepare(&w, &k, flags) != TB_OK; tries++) {
            CHECK(tries < 20);
            world_release(&w);
        }
        world_round(&w, 2);
        check_memory(&w);
        world_release(&w);
    }
    close_rank(&w, 0);
    close_rank(&w, 1);
    world_close(&w);
    kit_free(&k);
    relay_end(r);
    return first_cause(code, noticed);
}

/* Changes a bit of the byte; it must be noticed for what it is. */
static void change(const world_options *way, int direction, size_t at) {
    static relay r;
    relay_start(&r);
    atomic_store(&r.direction, direction);
    r.at = at;
    r.bit = (uint8_t)(1u << below(8));
    int32_t code = run(&r, way);
    if (!atomic_load(&r.changed)) {
        return; /* less was said this time */
    }
    changes++;
    bool hello = at < TB_HELLO_BYTES;
    if (code != TB_ECHECKSUM && !(hello && (code == TB_EPROTOCOL || code == TB_EAUTH || code == TB_EVERSION))) {
        fprintf(stderr, "way %d, direction %d, byte %zu, bit %02x: code %d\n", (int)(way - ways), direction, at, r.bit, code);
        exit(1);
    }
}

static void each_frame(const world_options *way) {
    static relay r;
    relay_start(&r);
    CHECK(run(&r, way) == TB_OK);
    for (int direction = 0; direction < 2; direction++) {
        change(way, direction, below(TB_HELLO_BYTES));
        for (size_t at = TB_HELLO_BYTES; at < r.count[direction];) {
            tb_wire_header header;
            memcpy(&header, r.record[direction] + at, sizeof header);
            CHECK(tb_wire_header_intact(&header));
            bool bucket = header.kind == TB_FRAME_DATA;
            size_t behind = bucket ? header.body_bytes + TB_TRAILER_BYTES : tb_wire_control_bytes(&header);
            change(way, direction, at + below(TB_HEADER_BYTES));
            if (behind > 0) {
                change(way, direction, at + TB_HEADER_BYTES + below(behind));
            }
            if (bucket) {
                change(way, direction, at + TB_HEADER_BYTES + header.body_bytes + below(4)); /* of its verdict */
            }
            at += TB_HEADER_BYTES + behind;
        }
    }
}

int main(int argc, char **argv) {
    state = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        each_frame(&ways[i]);
    }
    CHECK(changes > 40); /* 55 or so */
    return 0;
}
