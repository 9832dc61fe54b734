/* Strangers at the listener: what they can cost it, and that they keep nobody out. */
#include <netinet/tcp.h>

#include "evil_peer.h"

static const world_options options = {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1};

static void start_hello(tb_hello *hello, int32_t world) {
    tb_hello_start(hello);
    hello->rank = 0;
    hello->peer = 1;
    hello->world = world;
    hello->connections = 1;
    hello->incarnation = EVIL_INCARNATION;
}

/* More sockets than may be in their handshake, which say nothing: whoever has something to say is let in at once. */
static void test_silence(void) {
    enum { SILENT = 200, FREED = SILENT - 100 };
    world w;
    kit k;
    int fds[SILENT];
    evil_plan(&k);
    world_open(&w, &options, 2);
    for (int i = 0; i < SILENT; i++) {
        fds[i] = evil_dial(w.port[1]);
    }
    uint64_t begin = test_now();
    world_prepare(&w, &k, 0);
    CHECK(test_now() - begin < 2 * SECOND);
    int ended = 0;
    for (int i = 0; i < SILENT; i++) {
        char byte;
        ended += recv(fds[i], &byte, 1, MSG_DONTWAIT) == 0 || errno == ECONNRESET;
        close(fds[i]);
    }
    CHECK(ended >= FREED);
    world_close(&w);
    kit_free(&k);
}

/* A socket that says nothing goes sooner than one that has begun. */
static void test_no_hello(void) {
    world w;
    tb_hello hello;
    char byte;
    world_open(&w, &options, 2);
    int silent = evil_dial(w.port[1]);
    int begun = evil_dial(w.port[1]);
    start_hello(&hello, 2);
    evil_send(begun, &hello, sizeof hello);
    evil_take(&w, begun, &hello, sizeof hello);
    CHECK(evil_take_some(&w, silent, &byte, 1) == 0);
    CHECK(recv(begun, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    close(silent);
    close(begun);
    world_close(&w);
}

/* Hellos are answered without a question to the caller, who would have to make a proof for each. */
static void test_hellos(void) {
    enum { STRANGERS = 500 };
    world w;
    world_options silent = options;
    silent.no_answers = true;
    world_open(&w, &silent, 2);
    for (int i = 0; i < STRANGERS; i++) {
        tb_hello hello;
        int fd = evil_dial(w.port[1]);
        start_hello(&hello, 2);
        evil_send(fd, &hello, sizeof hello);
        evil_take(&w, fd, &hello, sizeof hello);
        close(fd);
    }
    world_pump(&w, 0);
    CHECK(w.event_count[1] == 0);
    world_close(&w);
}

/* Whoever connects proves first: a stranger is told nothing that it could guess the secret by. */
static void test_first_proof(void) {
    world w;
    const uint8_t proof[TB_PROOF_BYTES] = {0};
    tb_hello hello;
    tb_wire_header said;
    world_open(&w, &options, 2);
    int fd = evil_dial(w.port[1]);
    start_hello(&hello, 2);
    evil_send(fd, &hello, sizeof hello);
    evil_take(&w, fd, &hello, sizeof hello);
    evil_say(fd, (tb_wire_header){.kind = TB_FRAME_PROOF, .body_bytes = TB_PROOF_BYTES}, proof);
    evil_hear(&w, fd, &said, NULL, 0);
    CHECK(said.kind == TB_FRAME_VERDICT && said.count == (uint32_t)TB_EAUTH);
    CHECK(evil_take_to_end(&w, fd) == 0);
    close(fd);
    world_close(&w);
}

/* Connects from an address of this machine, says hello and hears one. */
static int greet(const world *w, const char *from) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    tb_hello hello;
    int yes = 1; /* what is said is there when the call returns */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && inet_pton(AF_INET, from, &at.sin_addr) == 1);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0);
    CHECK(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    at.sin_port = htons((uint16_t)w->port[1]);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    start_hello(&hello, 2);
    evil_send(fd, &hello, sizeof hello);
    CHECK(recv(fd, &hello, sizeof hello, MSG_WAITALL) == sizeof hello);
    return fd;
}

static bool is_open(int fd) {
    char byte;
    return recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* As many as may be in their handshake. */
enum { ROOM = 64 };

/* The one too many is taken out of those of the busiest address, the oldest first: the oldest of all stays. */
static void test_sources(void) {
    world w;
    int fds[ROOM];
    char byte;
    world_open(&w, &options, 2);
    int alone = greet(&w, "127.0.0.2");
    for (int i = 0; i < ROOM; i++) {
        fds[i] = greet(&w, "127.0.0.1");
    }
    CHECK(evil_take_some(&w, fds[0], &byte, 1) == 0);
    CHECK(is_open(alone));
    CHECK(is_open(fds[1]) && is_open(fds[ROOM - 1]));
    for (int i = 0; i < ROOM; i++) {
        close(fds[i]);
    }
    close(alone);
    world_close(&w);
}

/* Whoever has said nothing goes before whoever has, of the same address, though that one is older. */
static void test_silent_first(void) {
    world w;
    int fds[ROOM];
    char byte;
    world_open(&w, &options, 2);
    int begun = greet(&w, "127.0.0.1");
    for (int i = 0; i < ROOM; i++) {
        fds[i] = evil_dial(w.port[1]);
    }
    CHECK(evil_take_some(&w, fds[0], &byte, 1) == 0);
    CHECK(is_open(begun));
    for (int i = 0; i < ROOM; i++) {
        close(fds[i]);
    }
    close(begun);
    world_close(&w);
}

static int take_questions(const world *w, uint64_t *numbers) {
    tb_event event;
    int count = 0;
    for (;;) {
        CHECK(tb_session_next_event(w->session[1], &event, NULL) == TB_OK);
        if (event.kind == TB_EVENT_NONE) {
            return count;
        }
        if (event.kind == TB_EVENT_HANDSHAKE) {
            numbers[count++] = event.connection;
        }
    }
}

/* Proofs that nobody checks wait in a bounded number, and are asked for once others were answered. */
static void test_questions(void) {
    enum { STRANGERS = 60, BOUND = 32 };
    world w;
    world_options silent = options;
    silent.no_answers = true;
    int fds[STRANGERS];
    uint64_t numbers[2 * STRANGERS];
    const uint8_t none[TB_PROOF_BYTES] = {0};
    world_open(&w, &silent, 2);
    for (int i = 0; i < STRANGERS; i++) {
        fds[i] = greet(&w, "127.0.0.1");
        evil_say(fds[i], (tb_wire_header){.kind = TB_FRAME_PROOF, .body_bytes = TB_PROOF_BYTES}, none);
    }
    /* What came before the first of these is heard in the same turn of the loop, and so before the second is. */
    int last[2] = {greet(&w, "127.0.0.1")};
    last[1] = greet(&w, "127.0.0.1");
    int asked = take_questions(&w, numbers);
    CHECK(asked == BOUND);
    for (int answered = 0; asked < STRANGERS; answered++) {
        CHECK(answered < asked);
        CHECK(tb_session_handshake(w.session[1], numbers[answered], none, 0, NULL) == TB_OK);
        int more = take_questions(&w, numbers + asked);
        CHECK(more <= BOUND);
        asked += more;
    }
    CHECK(asked == STRANGERS);
    for (int i = 0; i < STRANGERS; i++) {
        close(fds[i]);
    }
    close(last[0]);
    close(last[1]);
    world_close(&w);
}

/* Refusals are told a few a second; the others are counted, and told of in one. */
static void test_faults(void) {
    enum { STRANGERS = 300, KEPT = 16 };
    world w;
    uint8_t garbage[TB_HELLO_BYTES] = {1};
    world_open(&w, &options, 2);
    uint64_t begin = test_now();
    for (int i = 0; i < STRANGERS; i++) {
        int fd = evil_dial(w.port[1]);
        evil_send(fd, garbage, sizeof garbage);
        CHECK(recv(fd, garbage, 1, 0) <= 0); /* it was refused */
        close(fd);
    }
    uint64_t seconds = (test_now() - begin) / SECOND + 1;
    int told = 0;
    int summed = 0;
    for (uint64_t until = test_now() + 20 * SECOND; told + summed < STRANGERS && test_now() < until;) {
        tb_event event;
        int more = 0;
        if (!world_take(&w, 1, TB_EVENT_FAULT, SECOND / 10, &event)) {
            continue;
        }
        if (sscanf(event.error.message, "%d more faults", &more) == 1) {
            summed += more;
        } else {
            told++;
        }
    }
    CHECK(told + summed == STRANGERS);
    CHECK(summed > 0 && (uint64_t)told <= KEPT * (seconds + 1));
    world_close(&w);
}

int main(void) {
    test_silence();
    test_no_hello();
    test_hellos();
    test_first_proof();
    test_sources();
    test_silent_first();
    test_questions();
    test_faults();
    return 0;
}
