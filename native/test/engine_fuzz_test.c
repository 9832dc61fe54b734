/*
 * Two peers that know the secret and say anything: ranks 0 and 1 on sockets, against the session of rank 2. They begin as
 * peers do, so that transfers are prepared and rounds run, and then send frames of every kind, in any order, with fields
 * that are right, almost right, and wrong. The sanitizers watch, and rank 2 has to go on: each attempt ends with a release,
 * and every so often the session with a close, within its time.
 *
 * engine_fuzz_test [SECONDS [SEED]]: without arguments a fixed number of attempts. A failure names its attempt's seed.
 */
#include <fcntl.h>
#include <netinet/tcp.h>

#include "base/error.h"
#include "evil_peer.h"
#include "kernels/dtype.h"

enum { PEERS = 2, RANK = 2, ATTEMPTS = 120, PART = 3000, PARTS = 3, BODY = 1 << 16, FRAMES = 24, PER_SESSION = 15 };

static uint64_t state;
static uint64_t prepared_count, round_count;

static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t below(uint64_t limit) {
    return next_random() % limit;
}

static bool mostly(void) {
    return below(8) != 0;
}

/* Everybody sends to everybody, and ranks 0 and 1 contribute to a sum of rank 2. */
static void plan(kit *k) {
    kit_start(k, 2, 4);
    kit_tensor(k, 0, TB_FLOAT32, PART * PARTS * 4, TB_FLOAT32, PART * PARTS * 4);
    kit_piece_add(k, RANK, 0, TB_FLOAT32, 0, PART, 1, 3);
    for (uint32_t member = 0; member < 3; member++) {
        kit_bucket *bucket = kit_bucket_add(k, 0, member, RANK, 0);
        bucket->fold_after = member == 0 ? -1 : k->bucket_count - 2;
        kit_reduce(k, bucket, 0, member, kit_run(0, PART * 4), 0);
    }
    int complete = k->bucket_count - 1;
    for (uint32_t peer = 0; peer < PEERS; peer++) {
        kit_bucket *sum = kit_bucket_add(k, 1, RANK, peer, 1);
        sum->dependencies[sum->dependency_count++] = complete;
        kit_copy(k, sum, 0, PART, kit_in_piece(0), kit_run(0, PART * 4));
        for (int part = 1; part < PARTS; part++) {
            kit_end run = kit_run((int64_t)part * PART * 4, PART * 4);
            kit_copy(k, kit_bucket_add(k, 1, peer, RANK, 1), 0, PART, run, run);
            kit_copy(k, kit_bucket_add(k, 1, RANK, peer, 1), 0, PART, run, run);
        }
    }
}

typedef struct evil {
    int fd;
    uint64_t transfer; /* rank 2's number of it; 0: not said yet */
    uint8_t in[1 << 17];
    size_t got;
    uint8_t prepare[4096];
    uint64_t prepare_bytes;
} evil;

static void say(evil *e, const void *bytes, size_t count) {
    if (e->fd >= 0 && send(e->fd, bytes, count, MSG_NOSIGNAL) != (ssize_t)count) {
        close(e->fd);
        e->fd = -1;
    }
}

/* They know checksums, too: what they say is what they meant to say. */
static void say_header(evil *e, tb_wire_header header) {
    tb_wire_seal(&header);
    say(e, &header, sizeof header);
}

static void say_body(evil *e, const void *bytes, size_t count) {
    uint32_t check = tb_crc32c(0, bytes, count);
    say(e, bytes, count);
    say(e, &check, sizeof check);
}

/* What came: only PREPARE is of interest, and that the connection is there. */
static void hear(evil *e) {
    while (e->fd >= 0) {
        ssize_t got = recv(e->fd, e->in + e->got, sizeof e->in - e->got, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) {
            return;
        }
        if (got <= 0) {
            close(e->fd);
            e->fd = -1;
            return;
        }
        e->got += (size_t)got;
        size_t at = 0;
        for (;;) {
            tb_wire_header header;
            if (e->got - at < sizeof header) {
                break;
            }
            memcpy(&header, e->in + at, sizeof header);
            size_t bytes = sizeof header
                           + (header.kind == TB_FRAME_DATA ? header.body_bytes + TB_TRAILER_BYTES : tb_wire_control_bytes(&header));
            CHECK(bytes <= sizeof e->in); /* rank 2 says nothing larger */
            if (e->got - at < bytes) {
                break;
            }
            if (header.kind == TB_FRAME_PREPARE) {
                e->prepare_bytes = header.body_bytes;
                memcpy(e->prepare, e->in + at + sizeof header, header.body_bytes);
                e->transfer = ((tb_wire_prepare *)(void *)e->prepare)->transfer;
            }
            at += bytes;
        }
        memmove(e->in, e->in + at, e->got - at);
        e->got -= at;
    }
}

static void join(world *w, evil *e, int32_t rank) {
    tb_hello hellos[2];
    *e = (evil){.fd = -1};
    int fd = evil_dial(w->port[RANK]);
    int yes = 1;
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0);
    tb_hello_start(&hellos[0]);
    hellos[0].rank = rank;
    hellos[0].peer = RANK;
    hellos[0].world = w->ranks;
    hellos[0].connections = 1;
    hellos[0].incarnation = next_random();
    evil_send(fd, &hellos[0], sizeof hellos[0]);
    evil_take(w, fd, &hellos[1], sizeof hellos[1]);
    evil_prove(w, fd, 0, hellos);
    e->fd = fd;
}

static void damage(uint8_t *bytes, uint64_t count) {
    for (uint64_t changes = 1 + below(3); changes > 0 && count > 0; changes--) {
        static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff};
        bytes[below(count)] = below(2) == 0 ? telling[below(5)] : (uint8_t)next_random();
    }
}

/* The mirror of rank 2's PREPARE, or almost, and that it matches. */
static void pair(evil *e) {
    uint8_t body[sizeof e->prepare];
    tb_wire_prepare prepare;
    if (e->transfer == 0) {
        return;
    }
    memcpy(body, e->prepare, e->prepare_bytes);
    memcpy(&prepare, body, sizeof prepare);
    prepare.transfer = EVIL_GRAPH;
    memcpy(body, &prepare, sizeof prepare);
    for (uint32_t i = 0; i < prepare.channels; i++) {
        uint8_t *at = body + sizeof prepare + i * sizeof(tb_wire_channel) + offsetof(tb_wire_channel, sends);
        *at = !*at;
    }
    if (!mostly()) {
        damage(body, e->prepare_bytes);
    }
    tb_wire_header header = {.kind = TB_FRAME_PREPARE, .body_bytes = e->prepare_bytes};
    say_header(e, header);
    say_body(e, body, e->prepare_bytes);
    header = (tb_wire_header){.kind = TB_FRAME_MATCH, .transfer = e->transfer, .round = EVIL_GRAPH};
    if (mostly()) {
        say_header(e, header);
    }
}

static uint64_t some_number(uint64_t right) {
    static const uint64_t wrong[] = {0, 1, 2, 3, 255, 1u << 31, UINT32_MAX, 1ull << 40, INT64_MAX, UINT64_MAX};
    return mostly() ? right : below(2) == 0 ? right + 1 : wrong[below(sizeof wrong / sizeof wrong[0])];
}

static uint64_t body_of(uint8_t kind, uint8_t *body) {
    for (int i = 0; i < 64; i++) {
        body[i] = (uint8_t)next_random();
    }
    switch (kind) {
    case TB_FRAME_DATA:
        return some_number(PART * 4);
    case TB_FRAME_ABORT:
    case TB_FRAME_RELEASE:
        ((tb_wire_failure *)(void *)body)->code = below(2) == 0 ? TB_ECANCELLED : (int32_t)next_random();
        ((tb_wire_failure *)(void *)body)->rank = (int32_t)below(4) - 1;
        return sizeof(tb_wire_failure) + below(TB_REASON_BYTES + 2);
    case TB_FRAME_PREPARE:
        return sizeof(tb_wire_prepare) + below(300);
    case TB_FRAME_EXPORT: {
        tb_wire_export header = {.words = below(9), .regions = (uint32_t)below(4), .ends = (uint32_t)below(4)};
        header.bytes = some_number(sizeof header + header.regions * sizeof(tb_wire_region)
                                   + header.ends * sizeof(tb_wire_end) + header.words * 8);
        memcpy(body, &header, sizeof header);
        return mostly() && header.bytes < 4096 ? header.bytes : below(200);
    }
    default:
        return mostly() ? 0 : below(100);
    }
}

static void say_frame(evil *e, uint64_t round) {
    static uint8_t body[BODY];
    tb_wire_header header = {
        .kind = mostly() ? (uint8_t)(TB_FRAME_PING + below(20)) : (uint8_t)next_random(),
        .stage = (uint8_t)(mostly() ? below(2) : below(256)),
        .count = (uint32_t)some_number(below(4)),
        .transfer = some_number(e->transfer),
        .round = some_number(round),
        .sequence = (uint32_t)some_number(below(3)),
    };
    header.body_bytes = body_of(header.kind, body);
    say_header(e, header);
    uint64_t bytes = header.body_bytes < sizeof body ? header.body_bytes : below(sizeof body);
    if (header.kind == TB_FRAME_DATA) {
        tb_wire_trailer trailer = {mostly() ? TB_TRAILER_GOOD : TB_TRAILER_VOID, 0};
        say(e, body, bytes);
        say(e, &trailer, sizeof trailer);
    } else if (bytes > 0) {
        say_body(e, body, bytes);
    }
    if (bytes < header.body_bytes && e->fd >= 0) {
        close(e->fd); /* the rest never comes */
        e->fd = -1;
    }
}

static void drop_events(world *w) {
    world_pump(w, 1);
    w->event_count[RANK] = 0;
}

/* Whatever the peers have done, a transfer that is cancelled comes to its end, and can be released. */
static void let_go(world *w) {
    tb_error err = {0};
    tb_transfer_cancel(w->session[RANK], w->transfer[RANK], TB_ECANCELLED, NULL);
    for (uint64_t until = test_now() + 10 * SECOND; test_now() < until; drop_events(w)) {
        if (tb_transfer_release(w->session[RANK], w->transfer[RANK], &err) == TB_OK) {
            return;
        }
    }
    fprintf(stderr, "the transfer is not let go: %d %s\n", err.code, err.message);
    exit(1);
}

static void attempt(world *w, const kit *k, evil evils[PEERS], uint64_t round) {
    world_prepare_rank(w, k, RANK, below(2) == 0 ? TB_TRANSFER_CHECKSUM : 0, 20 * SECOND);
    for (int i = 0; i < PEERS; i++) {
        if (evils[i].fd < 0) {
            join(w, &evils[i], i);
        }
    }
    for (uint64_t until = test_now() + SECOND / 20; test_now() < until;) {
        world_pump(w, 1);
        hear(&evils[0]);
        hear(&evils[1]);
        if ((evils[0].fd < 0 || evils[0].transfer != 0) && (evils[1].fd < 0 || evils[1].transfer != 0)) {
            break;
        }
    }
    pair(&evils[0]);
    pair(&evils[1]);
    tb_event event;
    bool prepared = world_take(w, RANK, TB_EVENT_PREPARED, SECOND / 20, &event) && event.error.code == TB_OK;
    if (prepared) {
        prepared_count++;
        round_count += TB_OK == tb_transfer_post(w->session[RANK], w->transfer[RANK], round, below(2) == 0 ? SECOND / 50 : SECOND, NULL);
    }
    for (uint64_t frames = below(FRAMES); frames > 0; frames--) {
        say_frame(&evils[below(PEERS)], round);
        if (below(6) == 0) {
            drop_events(w);
            hear(&evils[0]);
            hear(&evils[1]);
        }
    }
    drop_events(w);
    let_go(w);
    for (int i = 0; i < PEERS; i++) {
        hear(&evils[i]);
        evils[i].transfer = 0;
        if (evils[i].fd >= 0 && below(3) == 0) {
            close(evils[i].fd);
            evils[i].fd = -1;
        }
    }
}

static const world_options ways[] = {
    {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .quiesce_ms = 300},
    {.kind = TB_BACKEND_TCP, .threads = 2, .connections = 1, .quiesce_ms = 300, .carriers = TB_CARRY_SHM},
    {.kind = TB_BACKEND_TCP,
     .threads = 1,
     .connections = 1,
     .quiesce_ms = 300,
     .carriers = TB_CARRY_SHM | TB_CARRY_STREAM,
     .shared = true},
};

/* A session of its own, and some attempts. */
static void run(uint64_t seed) {
    state = seed * 0x9e3779b97f4a7c15u + 1;
    world w;
    kit k;
    static evil evils[PEERS];
    plan(&k);
    world_start(&w, &ways[below(sizeof ways / sizeof ways[0])], 3);
    w.pool[RANK] = 1 << 14;
    world_open_rank(&w, RANK);
    evils[0].fd = evils[1].fd = -1;
    for (uint64_t round = 1; round <= PER_SESSION; round++) {
        attempt(&w, &k, evils, round);
    }
    for (int i = 0; i < PEERS; i++) {
        if (evils[i].fd >= 0) {
            close(evils[i].fd);
        }
    }
    uint64_t begin = test_now();
    tb_error err;
    /* A peer that lied about reading may leave memory in quarantine: it says so, and ends all the same. */
    int32_t code = tb_session_close(w.session[RANK], &err);
    CHECK(code == TB_OK || code == TB_EQUARANTINED);
    CHECK(test_now() - begin < 10 * SECOND);
    close(w.event_fd[RANK]);
    w.open[RANK] = false;
    if (code == TB_EQUARANTINED) {
        w.memory[RANK][0][0] = w.memory[RANK][0][1] = NULL; /* stays, for good */
    }
    world_close(&w);
    kit_free(&k);
}

int main(int argc, char **argv) {
    uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t until = test_now() + seconds * SECOND;
    for (uint64_t i = 0; seconds == 0 ? i < ATTEMPTS / PER_SESSION : test_now() < until; i++) {
        char note[64];
        /* Said beforehand: whatever ends the process, this stands above it. */
        int length = snprintf(note, sizeof note, "seed %llu\n", (unsigned long long)(seed + i));
        if (argc > 1) {
            CHECK(write(STDERR_FILENO, note, (size_t)length) == length);
        }
        run(seed + i);
    }
    /* It is no test of prepares alone. */
    CHECK(round_count > 0);
    if (argc > 1) {
        fprintf(stderr, "%llu transfers were prepared, %llu rounds begun\n", (unsigned long long)prepared_count,
                (unsigned long long)round_count);
    }
    return 0;
}
