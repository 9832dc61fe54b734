/* What only TCP has: strangers at the port, secrets, processes that die or fall silent. */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "kernels/dtype.h"
#include "wire/conn.h"
#include "wire/tcp.h"
#include "world_kit.h"

enum { BYTES = 4 << 20, PARTS = 8 };

static const world_options plain = {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1};

/* Each rank sends to the next one, in a ring. */
static void ring(kit *k, int ranks) {
    kit_start(k, 2, 4);
    kit_tensor(k, 0, TB_UINT8, (uint64_t)BYTES * PARTS, TB_UINT8, (uint64_t)BYTES * PARTS);
    for (int rank = 0; rank < ranks; rank++) {
        for (int i = 0; i < PARTS; i++) {
            kit_bucket *bucket = kit_bucket_add(k, 1, (uint32_t)rank, (uint32_t)((rank + 1) % ranks), 0);
            kit_copy(k, bucket, 0, BYTES, kit_run((int64_t)i * BYTES, BYTES),
                     kit_run((int64_t)i * BYTES, BYTES));
        }
    }
}

static int dial(uint32_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

/* Reads until the other side closes. */
static uint64_t read_to_end(int fd, uint8_t *into, uint64_t room) {
    uint64_t got = 0;
    ssize_t count;
    while ((count = read(fd, into + got, room - got)) > 0) {
        got += (uint64_t)count;
    }
    return got;
}

/* ---- what the end of a connection says ------------------------------------------------------------------- */

/* Two ends of a connection over loopback. */
static void join(int ends[2]) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&at, &length) == 0);
    ends[0] = dial(ntohs(at.sin_port));
    ends[1] = accept(listener, NULL, NULL);
    CHECK(ends[1] >= 0);
    close(listener);
}

static void wait_for_end(int fd) {
    struct pollfd end = {.fd = fd, .events = 0};
    CHECK(poll(&end, 1, 10000) == 1 && (end.revents & (POLLHUP | POLLERR)) != 0);
}

/*
 * A rank ends its connections once it has come to rest, and closes its links for that, whatever it has not read; the kernel
 * of a process that was killed only closes the socket, and anybody between the two may reset it.
 */
static void test_ends(void) {
    enum { CLOSED, KILLED, RESET };
    for (int how = CLOSED; how <= RESET; how++) {
        for (int writes = 0; writes < 2; writes++) {
            int ends[2];
            uint8_t byte = 1;
            struct iovec iov = {&byte, 1};
            join(ends);
            CHECK(send(ends[0], &byte, 1, MSG_NOSIGNAL) == 1); /* is never read */
            struct pollfd came = {.fd = ends[1], .events = POLLIN};
            CHECK(poll(&came, 1, 10000) == 1);
            tb_link here = tb_tcp_link(ends[0]);
            tb_link there = tb_tcp_link(ends[1]);
            struct linger at_once = {1, 0};
            if (how == CLOSED) {
                there.kind->close(&there);
            } else {
                CHECK(how == KILLED || setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
                close(ends[1]);
            }
            wait_for_end(ends[0]);
            ssize_t moved = writes ? here.kind->writev(&here, &iov, 1) : here.kind->readv(&here, &iov, 1);
            CHECK(moved == (how != CLOSED ? -ECONNRESET : writes ? -EPIPE : 0));
            CHECK(tb_conn_says_end(moved) == (how == CLOSED));
            here.kind->close(&here);
        }
    }
}

/* ---- strangers ----------------------------------------------------------------------------------------- */

static void test_garbage(void) {
    world w;
    uint8_t bytes[4096];
    world_open(&w, &plain, 2);
    for (int value = 0; value < 256; value += 255) {
        int fd = dial(w.port[1]);
        memset(bytes, value, sizeof bytes);
        CHECK(send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) > 0);
        world_expect(&w, 1, TB_EVENT_FAULT, TB_EPROTOCOL, -1, NULL);
        read_to_end(fd, bytes, sizeof bytes);
        close(fd);
    }
    /* One that says nothing is dropped after a while, and one that leaves is forgotten. */
    close(dial(w.port[1]));
    world_close(&w);
}

static void make_hello(tb_hello *hello, int rank, int peer, int world) {
    tb_hello_start(hello);
    hello->rank = rank;
    hello->peer = peer;
    hello->world = world;
    hello->connections = 1;
    hello->incarnation = 77;
}

/* What the listener answers to a hello: its own, and then the code of its verdict. */
static int32_t verdict_of(world *w, const tb_hello *hello, int32_t fault) {
    uint8_t bytes[4096];
    tb_wire_header verdict = {0};
    int fd = dial(w->port[1]);
    CHECK(send(fd, hello, sizeof *hello, MSG_NOSIGNAL) == sizeof *hello);
    world_expect(w, 1, TB_EVENT_FAULT, fault, -2, NULL);
    CHECK(shutdown(fd, SHUT_WR) == 0);
    uint64_t got = read_to_end(fd, bytes, sizeof bytes);
    close(fd);
    if (got == sizeof *hello + sizeof verdict) {
        memcpy(&verdict, bytes + sizeof *hello, sizeof verdict);
    }
    return verdict.kind == TB_FRAME_VERDICT ? (int32_t)verdict.count : 0;
}

static void test_hello(void) {
    world w;
    tb_hello hello;
    world_open(&w, &plain, 2);
    make_hello(&hello, 0, 1, 2);
    hello.version = TB_PROTOCOL_VERSION + 1;
    CHECK(verdict_of(&w, &hello, TB_EVERSION) == TB_EVERSION);
    make_hello(&hello, 0, 1, 2);
    hello.generation = 9;
    CHECK(verdict_of(&w, &hello, TB_EAUTH) == TB_EAUTH);
    make_hello(&hello, 0, 1, 2);
    hello.name_space[3] = 9;
    CHECK(verdict_of(&w, &hello, TB_EAUTH) == TB_EAUTH);
    make_hello(&hello, 0, 1, 3);
    CHECK(verdict_of(&w, &hello, TB_EAUTH) == TB_EAUTH);
    make_hello(&hello, 0, 0, 2);
    CHECK(verdict_of(&w, &hello, TB_EPROTOCOL) == 0);
    make_hello(&hello, 0, 1, 2);
    hello.connections = 1000;
    CHECK(verdict_of(&w, &hello, TB_EPROTOCOL) == TB_EPROTOCOL);
    world_close(&w);
}

/* Frames before the handshake is over are never acted on. */
static void test_early_frames(void) {
    world w;
    tb_hello hello;
    uint8_t bytes[4096];
    world_open(&w, &plain, 2);
    make_hello(&hello, 0, 1, 2);
    tb_wire_header frame = {.kind = TB_FRAME_PREPARE, .body_bytes = 64};
    tb_wire_seal(&frame);
    int fd = dial(w.port[1]);
    CHECK(send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello);
    CHECK(send(fd, &frame, sizeof frame, MSG_NOSIGNAL) == sizeof frame);
    world_expect(&w, 1, TB_EVENT_FAULT, TB_EPROTOCOL, 0, NULL);
    read_to_end(fd, bytes, sizeof bytes);
    close(fd);
    /* A proof that is wrong, from one who does not check ours. */
    fd = dial(w.port[1]);
    uint8_t proof[sizeof frame + TB_PROOF_BYTES + TB_BODY_CHECK_BYTES] = {0};
    frame = (tb_wire_header){.kind = TB_FRAME_PROOF, .body_bytes = TB_PROOF_BYTES};
    tb_wire_seal(&frame);
    uint32_t check = tb_crc32c(0, proof + sizeof frame, TB_PROOF_BYTES);
    memcpy(proof, &frame, sizeof frame);
    memcpy(proof + sizeof frame + TB_PROOF_BYTES, &check, sizeof check);
    CHECK(send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello);
    CHECK(send(fd, proof, sizeof proof, MSG_NOSIGNAL) == sizeof proof);
    world_expect(&w, 1, TB_EVENT_FAULT, TB_EAUTH, 0, NULL);
    close(fd);
    world_close(&w);
}

static void test_secret(void) {
    world w;
    kit k;
    ring(&k, 2);
    world_open(&w, &plain, 2);
    w.secret[1] = 1;
    world_prepare_rank(&w, &k, 0, 0, 20 * SECOND);
    world_prepare_rank(&w, &k, 1, 0, SECOND);
    world_expect(&w, 0, TB_EVENT_PREPARED, TB_EAUTH, 1, NULL);
    world_expect(&w, 1, TB_EVENT_FAULT, TB_EAUTH, 0, NULL);
    world_expect(&w, 1, TB_EVENT_PREPARED, TB_ETIMEOUT, 0, NULL);
    world_release(&w);
    w.secret[1] = 0;
    world_prepare(&w, &k, 0);
    world_round(&w, 1);
    world_close(&w);
    kit_free(&k);
}

static void test_addresses(void) {
    world w;
    kit k;
    tb_error err;
    ring(&k, 2);
    world_open(&w, &plain, 2);
    tb_session_options options = {.struct_bytes = sizeof options,
                                  .kind = TB_BACKEND_TCP,
                                  .rank = 0,
                                  .world = 2,
                                  .connections = 1,
                                  .io_threads = 1,
                                  .peer_timeout_ms = 1000,
                                  .quiesce_ms = 1000,
                                  .listen_host = "127.0.0.1",
                                  .listen_port = w.port[0]};
    uint64_t session;
    int32_t fd;
    CHECK(tb_session_open(&options, &session, &fd, &err) == TB_EADDRESS_IN_USE && err.os_errno != 0);
    strcpy(options.listen_host, "localhost");
    CHECK(tb_session_open(&options, &session, &fd, &err) == TB_ECONNECT);
    CHECK(tb_session_set_peer(w.session[0], 1, "nowhere", 1, &err) == TB_ECONNECT);
    CHECK(tb_session_set_peer(w.session[0], 0, "127.0.0.1", 1, &err) == TB_EUNSUPPORTED);
    /* Nobody listens there any more. */
    world_close_rank(&w, 1);
    world_prepare_rank(&w, &k, 0, 0, 20 * SECOND);
    world_expect(&w, 0, TB_EVENT_PREPARED, TB_ECONNECT, 1, NULL);
    world_close(&w);
    kit_free(&k);
}

/* ---- processes that end or stop ------------------------------------------------------------------------ */

typedef struct meeting {
    volatile uint32_t port[4];
    volatile uint32_t prepared;
} meeting;

static void open_in_process(world *w, const kit *k, meeting *m, int rank, int ranks,
                            uint32_t peer_timeout_ms) {
    memset(w, 0, sizeof *w);
    w->options = plain;
    w->options.peer_timeout_ms = peer_timeout_ms;
    w->ranks = ranks;
    CHECK(tb_hub_create(&w->hub, NULL) == TB_OK);
    world_open_rank(w, rank);
    m->port[rank] = w->port[rank];
    for (int peer = 0; peer < ranks; peer++) {
        while (m->port[peer] == 0) {
            usleep(1000);
        }
        if (peer != rank) {
            CHECK(tb_session_set_peer(w->session[rank], peer, "127.0.0.1", m->port[peer], NULL) == TB_OK);
        }
    }
    world_prepare_rank(w, k, rank, 0, 20 * SECOND);
    world_expect(w, rank, TB_EVENT_PREPARED, TB_OK, -1, NULL);
    __sync_fetch_and_add(&m->prepared, 1);
}

/* Three processes; number 2 gets that signal in the middle of a round. The others learn its rank, soon. */
static void test_process(int signal, uint32_t peer_timeout_ms) {
    kit k;
    ring(&k, 3);
    meeting *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset((void *)m, 0, sizeof *m);
    pid_t children[3];
    for (int rank = 0; rank < 3; rank++) {
        children[rank] = fork();
        if (children[rank] != 0) {
            continue;
        }
        world w;
        open_in_process(&w, &k, m, rank, 3, peer_timeout_ms);
        if (rank == 2) {
            pause(); /* never posts, so nobody can finish */
        }
        world_post(&w, rank, 1, 60 * SECOND);
        world_expect(&w, rank, TB_EVENT_ROUND, TB_EPEER_LOST, 2, NULL);
        world_expect(&w, rank, TB_EVENT_PEER_LOST, TB_EPEER_LOST, 2, NULL);
        world_close(&w);
        kit_free(&k);
        exit(0);
    }
    while (m->prepared < 3) {
        usleep(1000);
        int status;
        CHECK(waitpid(-1, &status, WNOHANG) == 0);
    }
    usleep(100000);
    kill(children[2], signal);
    for (int rank = 0; rank < 2; rank++) {
        int status;
        CHECK(waitpid(children[rank], &status, 0) == children[rank] && status == 0);
    }
    kill(children[2], SIGKILL);
    waitpid(children[2], NULL, 0);
    munmap((void *)m, sizeof *m);
    kit_free(&k);
}

int main(void) {
    test_process(SIGKILL, 10000);
    test_process(SIGSTOP, 2000);
    test_ends();
    test_garbage();
    test_hello();
    test_early_frames();
    test_secret();
    test_addresses();
    return 0;
}
