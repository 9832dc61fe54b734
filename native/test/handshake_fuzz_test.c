/*
 * Strangers that say anything before they have proved who they are: hellos and frames that are right, almost right, and
 * wrong, in pieces of any size. Each connection ends, and a peer that knows the secret is let in afterwards.
 *
 * handshake_fuzz_test [SECONDS [SEED]]: without arguments a fixed number of connections.
 */
#include <netinet/tcp.h>

#include "evil_peer.h"

enum { STRANGERS = 300, PEERS_EVERY = 100 };

static uint64_t state;

static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void damage(uint8_t *bytes, size_t count) {
    for (uint64_t changes = next_random() % 3; changes > 0; changes--) {
        static const uint8_t telling[] = {0, 1, 2, 0x7f, 0x80, 0xff};
        bytes[next_random() % count] = next_random() % 2 ? telling[next_random() % 6] : (uint8_t)next_random();
    }
}

static size_t write_frame(uint8_t *at) {
    static const uint8_t kinds[] = {TB_FRAME_PROOF,   TB_FRAME_PROOF, TB_FRAME_VERDICT, TB_FRAME_VERDICT,
                                    TB_FRAME_PREPARE, TB_FRAME_DATA,  TB_FRAME_PING,    0};
    uint8_t kind = kinds[next_random() % sizeof kinds];
    size_t body = kind == TB_FRAME_PROOF ? TB_PROOF_BYTES : next_random() % 40;
    tb_wire_header header = {.kind = kind, .body_bytes = kind == TB_FRAME_VERDICT ? 0 : body};
    tb_wire_seal(&header);
    memcpy(at, &header, sizeof header);
    memset(at + sizeof header, (int)next_random(), body);
    uint32_t check = tb_crc32c(0, at + sizeof header, header.body_bytes);
    memcpy(at + sizeof header + header.body_bytes, &check, sizeof check);
    return sizeof header + tb_wire_control_bytes(&header);
}

static void stranger(world *w) {
    uint8_t bytes[1024];
    tb_hello hello;
    tb_hello_start(&hello);
    hello.rank = 0;
    hello.peer = 1;
    hello.world = 2;
    hello.connections = 1;
    memcpy(bytes, &hello, sizeof hello);
    size_t count = sizeof hello;
    for (uint64_t frames = next_random() % 4; frames > 0; frames--) {
        count += write_frame(bytes + count);
    }
    damage(bytes, next_random() % 2 ? count : sizeof hello);
    count -= next_random() % 4 == 0 ? next_random() % count : 0;
    int fd = evil_dial(w->port[1]);
    int yes = 1;
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0);
    for (size_t at = 0; at < count;) {
        size_t piece = 1 + next_random() % (count - at);
        if (send(fd, bytes + at, piece, MSG_NOSIGNAL) < 0) {
            break; /* it was refused already */
        }
        at += piece;
        if (next_random() % 3 == 0) {
            world_pump(w, 0);
        }
    }
    shutdown(fd, SHUT_WR);
    evil_take_to_end(w, fd);
    close(fd);
    w->event_count[1] = 0;
}

int main(int argc, char **argv) {
    uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    world w;
    state = 0x9e3779b97f4a7c15u * ((argc > 2 ? strtoull(argv[2], NULL, 10) : 1) + 1);
    world_open(&w, &evil_options, 2);
    uint64_t until = test_now() + seconds * SECOND;
    for (uint64_t i = 1; seconds == 0 ? i <= STRANGERS : test_now() < until; i++) {
        stranger(&w);
        if (i % PEERS_EVERY == 0) {
            close(evil_join(&w, 1, 0));
        }
    }
    world_close(&w);
    return 0;
}
