/* Peers that know the secret and break the protocol, or die at a bad moment: this process lives on. */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "evil_peer.h"

typedef struct evil_world {
    world w;
    kit k;
    int fd;
    uint64_t transfer;
} evil_world;

/* Rank 1 has a transfer with rank 0, which is played here over one connection. */
static void open_pair(evil_world *e) {
    evil_plan(&e->k);
    world_open(&e->w, &evil_options, 2);
    world_prepare_rank(&e->w, &e->k, 1, 0, 20 * SECOND);
    e->fd = evil_join(&e->w, 1, 0);
    e->transfer = evil_pair(&e->w, e->fd);
}

static void close_pair(evil_world *e) {
    close(e->fd);
    world_close(&e->w);
    kit_free(&e->k);
}

/* ---- a round ------------------------------------------------------------------------------------------- */

/* Both frames are handled before the first bucket can be claimed: the round must not settle over it. */
static void test_receipt_before_data(void) {
    evil_world e;
    open_pair(&e);
    world_post(&e.w, 1, 1, 20 * SECOND);
    tb_wire_header frames[2] = {
        {.kind = TB_FRAME_GRANT, .stage = 1, .count = EVIL_PARTS, .transfer = e.transfer, .round = 1},
        {.kind = TB_FRAME_TAKEN, .stage = 1, .transfer = e.transfer, .round = 1},
    };
    tb_wire_seal(&frames[0]);
    tb_wire_seal(&frames[1]);
    evil_send(e.fd, frames, sizeof frames);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_EPROTOCOL, 0, NULL);
    evil_take_to_end(&e.w, e.fd);
    close_pair(&e);
}

/* The next frame that is no word of a round's beginning, or of its end ahead of time: how often that was said. */
static int take_frame(evil_world *e, tb_wire_header *frame, uint64_t ahead) {
    static uint8_t body[4096];
    for (int aborts = 0;; aborts += frame->kind == TB_FRAME_ABORT) {
        evil_hear(&e->w, e->fd, frame, body, sizeof body);
        if (frame->kind != TB_FRAME_HERE && (frame->kind != TB_FRAME_ABORT || frame->round != ahead)) {
            return aborts;
        }
    }
}

/* Takes all of a round as rank 0, and says so; how often it heard of the end of the round `ahead`. */
static int take_round(evil_world *e, uint64_t round, uint64_t ahead) {
    int aborts = 0;
    static uint8_t body[EVIL_BYTES];
    tb_wire_header frame = {
        .kind = TB_FRAME_GRANT, .stage = 1, .count = EVIL_PARTS, .transfer = e->transfer, .round = round};
    evil_say(e->fd, frame, NULL);
    for (int i = 0; i < EVIL_PARTS; i++) {
        tb_wire_trailer trailer;
        aborts += take_frame(e, &frame, ahead);
        CHECK(frame.kind == TB_FRAME_DATA && frame.round == round && frame.body_bytes == sizeof body);
        evil_take(&e->w, e->fd, body, sizeof body);
        evil_take(&e->w, e->fd, &trailer, sizeof trailer);
    }
    frame = (tb_wire_header){.kind = TB_FRAME_TAKEN, .stage = 1, .transfer = e->transfer, .round = round};
    evil_say(e->fd, frame, NULL);
    return aborts;
}

static void give_up(evil_world *e, uint64_t round) {
    const tb_wire_failure failure = {TB_ECANCELLED, 0};
    const tb_wire_header abort = {
        .kind = TB_FRAME_ABORT, .transfer = e->transfer, .round = round, .body_bytes = sizeof failure};
    evil_say(e->fd, abort, &failure);
}

/* A peer spoils the rounds that it names, and none before them, however far ahead they are. */
static void test_aborts_ahead(void) {
    evil_world e;
    tb_event event;
    int aborts = 0;
    open_pair(&e);
    give_up(&e, UINT64_MAX);
    give_up(&e, 1000);
    give_up(&e, 3);
    for (uint64_t round = 1; round <= 4; round++) {
        world_post(&e.w, 1, round, 20 * SECOND);
        if (round != 3) {
            aborts += take_round(&e, round, 3);
            world_expect(&e.w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
            continue;
        }
        world_expect(&e.w, 1, TB_EVENT_ROUND, TB_ECANCELLED, 0, &event);
        CHECK(event.error.os_errno == ESTALE);
    }
    CHECK(aborts == 2); /* it was passed on when it came, and said again when it failed here */
    close_pair(&e);
}

/* Rank 0 never began round 1 and grants round 2: the round fails, the connection and the grant remain. */
static void test_peer_ahead(void) {
    evil_world e;
    tb_event event;
    open_pair(&e);
    world_post(&e.w, 1, 1, 20 * SECOND);
    tb_wire_header frame = {
        .kind = TB_FRAME_GRANT, .stage = 1, .count = EVIL_PARTS, .transfer = e.transfer, .round = 2};
    evil_say(e.fd, frame, NULL);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_ECANCELLED, 0, NULL);
    take_frame(&e, &frame, 0);
    CHECK(frame.kind == TB_FRAME_ABORT && frame.round == 1);
    static uint8_t body[EVIL_BYTES];
    world_post(&e.w, 1, 2, 20 * SECOND);
    for (int i = 0; i < EVIL_PARTS; i++) {
        tb_wire_trailer trailer;
        take_frame(&e, &frame, 0);
        CHECK(frame.kind == TB_FRAME_DATA && frame.round == 2 && frame.body_bytes == sizeof body);
        evil_take(&e.w, e.fd, body, sizeof body);
        evil_take(&e.w, e.fd, &trailer, sizeof trailer);
        CHECK(trailer.verdict == TB_TRAILER_GOOD);
        CHECK(memcmp(body, e.w.memory[1][0][0] + (uint64_t)frame.sequence * EVIL_BYTES, sizeof body) == 0);
    }
    frame = (tb_wire_header){.kind = TB_FRAME_TAKEN, .stage = 1, .transfer = e.transfer, .round = 2};
    evil_say(e.fd, frame, NULL);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_OK, -1, &event);
    CHECK(event.bytes_sent == (uint64_t)EVIL_BYTES * EVIL_PARTS);
    close_pair(&e);
}

/* Control frames up to the first ABORT, and how many PONGs were among them. */
static uint64_t pongs_before_abort(evil_world *e) {
    uint8_t body[4096];
    tb_wire_header header = {0};
    uint64_t pongs = 0;
    while (header.kind != TB_FRAME_ABORT) {
        evil_hear(&e->w, e->fd, &header, body, sizeof body);
        CHECK(header.kind != TB_FRAME_DATA);
        pongs += header.kind == TB_FRAME_PONG;
    }
    return pongs;
}

/* Answers that nobody reads are not kept: far fewer than were asked for, of which the kernel has most. */
static void test_questions_without_end(void) {
    enum { COUNT = 1 << 14, TIMES = 48 };
    static tb_wire_header pings[COUNT];
    evil_world e;
    open_pair(&e);
    world_post(&e.w, 1, 1, 60 * SECOND);
    for (int i = 0; i < COUNT; i++) {
        pings[i] = (tb_wire_header){.kind = TB_FRAME_PING};
        tb_wire_seal(&pings[i]);
    }
    for (int i = 0; i < TIMES; i++) {
        evil_send(e.fd, pings, sizeof pings);
    }
    CHECK(tb_transfer_cancel(e.w.session[1], e.w.transfer[1], TB_ECANCELLED, NULL) == TB_OK);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_ECANCELLED, 1, NULL);
    CHECK(pongs_before_abort(&e) < (uint64_t)COUNT * TIMES * 3 / 4);
    close_pair(&e);
}

/* ---- connections --------------------------------------------------------------------------------------- */

/* Connections of one set name two sizes of it: the peer is not up while a number of it is missing. */
static void test_sizes_of_a_set(void) {
    world w;
    kit k;
    evil_plan(&k);
    world_open(&w, &evil_options, 2);
    world_prepare_rank(&w, &k, 1, 0, 20 * SECOND);
    int first = evil_join(&w, 16, 5);
    int second = evil_join(&w, 2, 1);
    world_expect(&w, 1, TB_EVENT_FAULT, TB_EPROTOCOL, 0, NULL);
    CHECK(evil_take_to_end(&w, second) == 0);
    close(first);
    close(second);
    world_close(&w);
    kit_free(&k);
}

/* Takes `count` bytes, however they are spread over two connections. */
static void take_of_both(world *w, const int fd[2], uint64_t count) {
    static uint8_t sink[1 << 16];
    for (uint64_t until = test_now() + 20 * SECOND; count > 0;) {
        CHECK(test_now() < until);
        for (int i = 0; i < 2; i++) {
            ssize_t got = recv(fd[i], sink, sizeof sink, MSG_DONTWAIT);
            CHECK(got != 0 && (uint64_t)(got > 0 ? got : 0) <= count);
            count -= got > 0 ? (uint64_t)got : 0;
        }
        world_pump(w, 0);
    }
}

/* A receiver that is done leaves in order: the end of one connection overtakes the receipt in another one. */
static void test_end_before_receipt(void) {
    evil_world e;
    evil_plan(&e.k);
    world_open(&e.w, &evil_options, 2);
    world_prepare_rank(&e.w, &e.k, 1, 0, 20 * SECOND);
    int fd[2] = {evil_join(&e.w, 2, 0), evil_join(&e.w, 2, 1)};
    e.fd = fd[0];
    e.transfer = evil_pair(&e.w, e.fd);
    world_post(&e.w, 1, 1, 20 * SECOND);
    tb_wire_header frame = {
        .kind = TB_FRAME_GRANT, .stage = 1, .count = EVIL_PARTS, .transfer = e.transfer, .round = 1};
    evil_say(e.fd, frame, NULL);
    take_of_both(&e.w, fd,
                 TB_HEADER_BYTES /* HERE */
                     + (uint64_t)EVIL_PARTS * (TB_HEADER_BYTES + EVIL_BYTES + TB_TRAILER_BYTES));
    close(fd[1]);
    for (int i = 0; i < 10; i++) {
        world_pump(&e.w, 5); /* the end of it is seen */
    }
    frame = (tb_wire_header){.kind = TB_FRAME_TAKEN, .stage = 1, .transfer = e.transfer, .round = 1};
    evil_say(e.fd, frame, NULL);
    evil_say(e.fd, (tb_wire_header){.kind = TB_FRAME_BYE}, NULL);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
    world_expect(&e.w, 1, TB_EVENT_PEER_LEFT, TB_EPEER_LOST, 0, NULL);
    close_pair(&e);
}

/* ---- the other way round: rank 0 connects to rank 1, which is played here ------------------------------ */

static void test_half_a_set(void) {
    static const world_options two = {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 2};
    world w;
    kit k;
    tb_hello hellos[2];
    evil_plan(&k);
    world_open(&w, &two, 2);
    world_close_rank(&w, 1);
    int listener = evil_listen(&w);
    world_prepare_rank(&w, &k, 0, 0, 60 * SECOND);
    int first = evil_accept(&w, listener), second = evil_accept(&w, listener);
    CHECK(first >= 0 && second >= 0);
    evil_answer(&w, first, 0, hellos);
    evil_prove(&w, first, 1, hellos);
    for (int i = 0; i < 10; i++) {
        world_pump(&w, 5); /* the first one is open now */
    }
    close(first); /* then the process dies */
    close(second);
    first = evil_accept(&w, listener);
    CHECK(first >= 0);
    evil_answer(&w, first, 1, hellos);
    world_expect(&w, 0, TB_EVENT_PREPARED, TB_EPROTOCOL, 1, NULL);
    close(first);
    close(listener);
    world_close(&w);
    kit_free(&k);
}

static int count_faults(world *w, int rank) {
    tb_event event;
    int count = 0;
    while (world_take(w, rank, TB_EVENT_FAULT, 0, &event)) {
        count++;
    }
    return count;
}

/* No descriptor is free, and no spare one: the connection waits, quietly, until there is one. */
static void test_no_descriptors(void) {
    world w;
    tb_hello hello;
    struct rlimit before, none;
    world_open(&w, &evil_options, 2);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)w.port[1])};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = (struct rlimit){.rlim_cur = 4, .rlim_max = before.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    world_expect(&w, 1, TB_EVENT_FAULT, TB_ESYSTEM, -1, NULL);
    for (int i = 0; i < 20; i++) {
        world_pump(&w, 5);
    }
    CHECK(count_faults(&w, 1) < 100);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    tb_hello_start(&hello);
    hello.peer = 1;
    hello.world = 2;
    hello.connections = 1;
    evil_send(fd, &hello, sizeof hello);
    evil_take(&w, fd, &hello, sizeof hello);
    CHECK(hello.rank == 1);
    close(fd);
    world_close(&w);
}

/* A child that was forked holds the sockets, too: the end of a connection is one all the same. */
static void test_fork(void) {
    evil_world e;
    open_pair(&e);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(e.fd);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    tb_wire_header unknown = {.kind = 99};
    tb_wire_seal(&unknown);
    evil_send(e.fd, &unknown, sizeof unknown);
    world_expect(&e.w, 1, TB_EVENT_PEER_LOST, TB_EPROTOCOL, 0, NULL);
    evil_take_to_end(&e.w, e.fd);
    for (int i = 0; i < 5; i++) { /* nothing that comes now belongs to a connection */
        send(e.fd, &unknown, sizeof unknown, MSG_NOSIGNAL);
        world_pump(&e.w, 5);
    }
    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
    close_pair(&e);
}

/* ---- in one process ------------------------------------------------------------------------------------ */

/* The hub's handle goes first, then sessions whose threads may be in it; nothing starts while they end. */
static void test_end_of_hub(void) {
    static const world_options memory = {.kind = TB_BACKEND_MEMORY, .threads = 1, .connections = 1};
    for (int i = 0; i < 50; i++) {
        world w;
        kit k;
        evil_plan(&k);
        world_open(&w, &memory, 2);
        world_prepare(&w, &k, 0);
        CHECK(tb_hub_destroy(w.hub, NULL) == TB_OK);
        CHECK(tb_session_stop(w.session[1], NULL) == TB_OK);
        CHECK(tb_transfer_post(w.session[1], w.transfer[1], 1, SECOND, NULL) == TB_ECLOSED);
        CHECK(tb_hub_create(&w.hub, NULL) == TB_OK); /* which world_close takes back */
        world_close(&w);
        kit_free(&k);
    }
}

int main(void) {
    test_receipt_before_data();
    test_peer_ahead();
    test_aborts_ahead();
    test_questions_without_end();
    test_sizes_of_a_set();
    test_end_before_receipt();
    test_half_a_set();
    test_no_descriptors();
    test_fork();
    test_end_of_hub();
    return 0;
}
