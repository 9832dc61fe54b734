/* Strangers at the listener: what they can cost it, and that they keep nobody out. */
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

/* Proofs that nobody checks wait in a bounded number, and are asked for once others were answered. */
static void test_questions(void) {
    enum { STRANGERS = 60, BOUND = 32 };
    world w;
    world_options silent = options;
    silent.no_answers = true;
    int fds[STRANGERS];
    world_open(&w, &silent, 2);
    for (int i = 0; i < STRANGERS; i++) {
        tb_hello hello;
        tb_wire_header header = {.kind = TB_FRAME_PROOF, .body_bytes = TB_PROOF_BYTES};
        uint8_t proof[TB_PROOF_BYTES] = {0};
        fds[i] = evil_dial(w.port[1]);
        start_hello(&hello, 2);
        evil_send(fds[i], &hello, sizeof hello);
        CHECK(recv(fds[i], &hello, sizeof hello, MSG_WAITALL) == sizeof hello); /* nobody takes events meanwhile */
        evil_say(fds[i], header, proof);
    }
    /* Asked for a few at a time: never more than the bound are there at once, and all are in the end. */
    int asked = 0;
    for (uint64_t until = test_now() + 20 * SECOND; asked < STRANGERS && test_now() < until;) {
        uint8_t none[32] = {0};
        int at_once = 0;
        tb_event events[STRANGERS];
        for (;;) {
            CHECK(tb_session_next_event(w.session[1], &events[at_once], NULL) == TB_OK);
            if (events[at_once].kind != TB_EVENT_HANDSHAKE) {
                if (events[at_once].kind == TB_EVENT_NONE) {
                    break;
                }
                continue;
            }
            at_once++;
            CHECK(at_once <= BOUND);
        }
        for (int i = 0; i < at_once; i++) {
            CHECK(tb_session_handshake(w.session[1], events[i].connection, none, 0, NULL) == TB_OK);
        }
        asked += at_once;
        usleep(1000);
    }
    CHECK(asked == STRANGERS);
    for (int i = 0; i < STRANGERS; i++) {
        close(fds[i]);
    }
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
    test_questions();
    test_faults();
    return 0;
}
