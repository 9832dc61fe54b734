/* Peers that know the secret and break the protocol, or die at a bad moment: this process keeps its memory and lives. */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "evil_peer.h"

typedef struct evil_world {
    world w;
    kit k;
    int fd;
    uint64_t graph;
} evil_world;

/* Rank 1 has a graph with rank 0, which is played here over one connection. */
static void open_pair(evil_world *e) {
    evil_plan(&e->k);
    world_open(&e->w, &evil_options, 2);
    world_prepare_rank(&e->w, &e->k, 1, 0, 20 * SECOND);
    e->fd = evil_join(&e->w, 1, 0);
    e->graph = evil_pair(&e->w, e->fd);
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
        {.kind = TB_FRAME_GRANT, .stage = 1, .count = EVIL_PARTS, .graph = e.graph, .round = 1},
        {.kind = TB_FRAME_TAKEN, .stage = 1, .graph = e.graph, .round = 1},
    };
    evil_send(e.fd, frames, sizeof frames);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_EPROTOCOL, 0, NULL);
    evil_take_to_end(&e.w, e.fd);
    close_pair(&e);
}

/* Control frames up to the first ABORT, and how many PONGs were among them. */
static uint64_t pongs_before_abort(evil_world *e) {
    uint8_t body[4096];
    tb_wire_header header = {0};
    uint64_t pongs = 0;
    while (header.kind != TB_FRAME_ABORT) {
        evil_take(&e->w, e->fd, &header, sizeof header);
        CHECK(header.kind != TB_FRAME_DATA && header.body_bytes <= sizeof body);
        evil_take(&e->w, e->fd, body, header.body_bytes);
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
    }
    for (int i = 0; i < TIMES; i++) {
        evil_send(e.fd, pings, sizeof pings);
    }
    CHECK(tb_graph_cancel(e.w.session[1], e.w.graph[1], TB_ECANCELLED, NULL) == TB_OK);
    world_expect(&e.w, 1, TB_EVENT_ROUND, TB_ECANCELLED, 1, NULL);
    CHECK(pongs_before_abort(&e) < (uint64_t)COUNT * TIMES * 3 / 4);
    close_pair(&e);
}

/* ---- connections --------------------------------------------------------------------------------------- */

/* Of one set, they name two sizes of it: the peer is not up while a number of it is missing. */
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

int main(void) {
    test_receipt_before_data();
    test_questions_without_end();
    test_sizes_of_a_set();
    test_fork();
    return 0;
}
