/* A peer that knows the secret and keeps to the protocol as far as a test wants: rank 0, on a socket. */
#ifndef TB_EVIL_PEER_H
#define TB_EVIL_PEER_H

#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>

#include "kernels/dtype.h"
#include "wire/wire.h"
#include "world_kit.h"

enum { EVIL_BYTES = 1 << 20, EVIL_PARTS = 8, EVIL_GRAPH = 4242, EVIL_INCARNATION = 77 };

static const world_options evil_options = {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1};

static inline int evil_dial(uint32_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int little = 1 << 16; /* what it does not read waits on the other side */
    CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little) == 0);
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

static inline void evil_send(int fd, const void *bytes, size_t count) {
    CHECK(send(fd, bytes, count, MSG_NOSIGNAL) == (ssize_t)count);
}

/* A frame; of DATA only the header. */
static inline void evil_say(int fd, tb_wire_header header, const void *body) {
    tb_wire_seal(&header);
    evil_send(fd, &header, sizeof header);
    if (header.kind != TB_FRAME_DATA && header.body_bytes > 0) {
        uint32_t check = tb_crc32c(0, body, header.body_bytes);
        evil_send(fd, body, header.body_bytes);
        evil_send(fd, &check, sizeof check);
    }
}

/* At most `count` bytes, while the world answers its events; 0 if the connection has ended. */
static inline size_t evil_take_some(world *w, int fd, void *into, size_t count) {
    for (uint64_t until = test_now() + 20 * SECOND; test_now() < until;) {
        ssize_t got = recv(fd, into, count, MSG_DONTWAIT);
        if (got >= 0 || errno == ECONNRESET) {
            return got > 0 ? (size_t)got : 0;
        }
        world_pump(w, 1);
    }
    CHECK(!"bytes or an end came in time");
    return 0;
}

static inline void evil_take(world *w, int fd, void *into, size_t count) {
    for (size_t got = 0; got < count;) {
        size_t some = evil_take_some(w, fd, (char *)into + got, count - got);
        CHECK(some > 0);
        got += some;
    }
}

/* A frame, with at most `room` bytes of body; of DATA only the header. */
static inline void evil_hear(world *w, int fd, tb_wire_header *header, void *body, size_t room) {
    uint32_t check;
    evil_take(w, fd, header, sizeof *header);
    CHECK(tb_wire_header_intact(header));
    if (header->kind != TB_FRAME_DATA && header->body_bytes > 0) {
        CHECK(header->body_bytes <= room);
        evil_take(w, fd, body, header->body_bytes);
        evil_take(w, fd, &check, sizeof check);
        CHECK(check == tb_crc32c(0, body, header->body_bytes));
    }
}

/* Whatever still comes is dropped; returns once the other side has ended the connection. */
static inline uint64_t evil_take_to_end(world *w, int fd) {
    static uint8_t sink[1 << 16];
    uint64_t total = 0;
    for (size_t some; (some = evil_take_some(w, fd, sink, sizeof sink)) > 0;) {
        total += some;
    }
    return total;
}

/* Proof and verdict of the role (0 connected, 1 accepted); those of the other side must welcome it. */
static inline void evil_prove(world *w, int fd, uint8_t role, const tb_hello hellos[2]) {
    tb_event event;
    uint8_t ours[TB_PROOF_BYTES], theirs[TB_PROOF_BYTES];
    const tb_wire_header proof = {.kind = TB_FRAME_PROOF, .body_bytes = TB_PROOF_BYTES};
    const tb_wire_header verdict = {.kind = TB_FRAME_VERDICT};
    tb_wire_header heard;
    memcpy(event.handshake_hello, hellos, 2 * TB_HELLO_BYTES);
    world_proof(0, role, &event, ours);
    /* The side that connected proves first. */
    if (role == 1) {
        evil_hear(w, fd, &heard, theirs, sizeof theirs);
        CHECK(heard.kind == TB_FRAME_PROOF);
    }
    evil_say(fd, proof, ours);
    evil_say(fd, verdict, NULL);
    if (role == 0) {
        evil_hear(w, fd, &heard, theirs, sizeof theirs);
        CHECK(heard.kind == TB_FRAME_PROOF);
    }
    evil_hear(w, fd, &heard, NULL, 0);
    CHECK(heard.kind == TB_FRAME_VERDICT && heard.count == TB_OK);
}

/* A connection to rank 1, through the handshake: number `index` of `connections`. */
static inline int evil_join(world *w, uint32_t connections, uint32_t index) {
    tb_hello hellos[2];
    int fd = evil_dial(w->port[1]);
    tb_hello_start(&hellos[0]);
    hellos[0].rank = 0;
    hellos[0].peer = 1;
    hellos[0].world = w->ranks;
    hellos[0].connections = connections;
    hellos[0].connection = index;
    hellos[0].incarnation = EVIL_INCARNATION;
    evil_send(fd, &hellos[0], sizeof hellos[0]);
    evil_take(w, fd, &hellos[1], sizeof hellos[1]);
    evil_prove(w, fd, 0, hellos);
    return fd;
}

/* Rank 1, as rank 0 finds it from now on: it is played here. */
static inline int evil_listen(world *w) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t length = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, length) == 0 && listen(fd, 16) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&at, &length) == 0);
    CHECK(tb_session_set_peer(w->session[0], 1, "127.0.0.1", ntohs(at.sin_port), NULL) == TB_OK);
    return fd;
}

static inline int evil_accept(world *w, int listener) {
    struct pollfd waits = {.fd = listener, .events = POLLIN};
    for (uint64_t until = test_now() + 20 * SECOND; test_now() < until; world_pump(w, 1)) {
        if (poll(&waits, 1, 0) > 0) {
            return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        }
    }
    return -1;
}

/* Rank 0 says which connection it is; the answer names that one `ahead` later. */
static inline void evil_answer(world *w, int fd, uint32_t ahead, tb_hello hellos[2]) {
    evil_take(w, fd, &hellos[0], sizeof hellos[0]);
    hellos[1] = hellos[0];
    hellos[1].rank = 1;
    hellos[1].peer = 0;
    hellos[1].connection += ahead;
    hellos[1].incarnation = EVIL_INCARNATION;
    memset(hellos[1].nonce, 9, sizeof hellos[1].nonce);
    evil_send(fd, &hellos[1], sizeof hellos[1]);
}

/* Rank 1 sends all its parts to rank 0. */
static inline void evil_plan(kit *k) {
    uint64_t bytes = (uint64_t)EVIL_BYTES * EVIL_PARTS;
    kit_start(k, 2, 4);
    kit_tensor(k, 0, TB_UINT8, bytes, TB_UINT8, bytes);
    for (int i = 0; i < EVIL_PARTS; i++) {
        kit_bucket *bucket = kit_bucket_add(k, 1, 1, 0, 0);
        kit_end run = kit_run((int64_t)i * EVIL_BYTES, EVIL_BYTES);
        kit_copy(k, bucket, 0, EVIL_BYTES, run, run);
    }
}

/* Answers the PREPARE of rank 1 with its mirror. Gives rank 1's number of the transfer; ours is EVIL_GRAPH. */
static inline uint64_t evil_pair(world *w, int fd) {
    uint8_t body[4096];
    tb_wire_header header;
    tb_wire_prepare prepare;
    evil_hear(w, fd, &header, body, sizeof body);
    CHECK(header.kind == TB_FRAME_PREPARE);
    memcpy(&prepare, body, sizeof prepare);
    uint64_t transfer = prepare.transfer;
    prepare.transfer = EVIL_GRAPH;
    memcpy(body, &prepare, sizeof prepare);
    for (uint32_t i = 0; i < prepare.channels; i++) {
        tb_wire_channel row;
        uint8_t *at = body + sizeof prepare + i * sizeof row;
        memcpy(&row, at, sizeof row);
        row.sends = !row.sends;
        memcpy(at, &row, sizeof row);
    }
    evil_say(fd, header, body);
    evil_hear(w, fd, &header, NULL, 0);
    CHECK(header.kind == TB_FRAME_MATCH && header.transfer == EVIL_GRAPH && header.round == transfer);
    evil_say(fd, (tb_wire_header){.kind = TB_FRAME_MATCH, .transfer = transfer, .round = EVIL_GRAPH}, NULL);
    world_expect(w, 1, TB_EVENT_PREPARED, TB_OK, -1, NULL);
    return transfer;
}

#endif
