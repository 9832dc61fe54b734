/* The frames of docs/wire-protocol.md: their bytes, and nothing of what they cause. */
#ifndef TB_WIRE_H
#define TB_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "tensorbus.h"

#define TB_HELLO_BYTES 128
#define TB_HEADER_BYTES 40
#define TB_TRAILER_BYTES 8
#define TB_PROOF_BYTES 32
#define TB_KEY_BYTES 1024 /* the longest key of a graph */
#define TB_REASON_BYTES 240 /* the longest message that travels with a failure */

enum tb_frame_kind {
    TB_FRAME_PROOF = 1,   /* body: 32 bytes */
    TB_FRAME_VERDICT = 2, /* count: 0 or the code of the refusal */
    TB_FRAME_PING = 3,
    TB_FRAME_PONG = 4,
    TB_FRAME_BYE = 5,
    TB_FRAME_PREPARE = 6, /* body: tb_wire_prepare, channels, key */
    TB_FRAME_RELEASE = 7, /* round: the sender's number of its graph, which is no more; body: as of ABORT */
    TB_FRAME_GRANT = 8,   /* count: buckets of the channel that may be sent, from the first */
    TB_FRAME_DATA = 9,    /* sequence: bucket; body: payload; a trailer follows */
    TB_FRAME_TAKEN = 10,  /* the receiver has consumed the channel */
    TB_FRAME_ABORT = 11,  /* body: tb_wire_failure, message */
    TB_FRAME_MATCH = 12, /* round: the sender's number of the graph that it has paired with the receiver's */
};

/* Before every frame. Unused fields are 0. graph is the receiver's number of it. */
typedef struct tb_wire_header {
    uint8_t kind;
    uint8_t stage;
    uint16_t reserved;
    uint32_t count;
    uint64_t graph;
    uint64_t round;
    uint64_t body_bytes;
    uint32_t sequence;
    uint32_t reserved2;
} tb_wire_header;

/* After the payload of a bucket. */
enum { TB_TRAILER_GOOD = 0x444f4f47, TB_TRAILER_VOID = 0x44494f56 };
typedef struct tb_wire_trailer {
    uint32_t verdict;
    uint32_t crc; /* of the payload, or 0 where no checksum was asked for */
} tb_wire_trailer;

typedef struct tb_wire_prepare {
    uint64_t graph; /* the sender's number of it */
    uint8_t digest[32];
    uint32_t flags;
    uint32_t channels;
    uint32_t key_bytes;
    uint32_t has_pool; /* the sender owns reduced pieces */
} tb_wire_prepare;

typedef struct tb_wire_channel {
    uint32_t stage;
    uint32_t sends; /* 1 from the frame's sender to its receiver, 0 the other way */
    uint32_t buckets;
    uint32_t reserved;
    uint64_t bytes;
    uint64_t fingerprint;
} tb_wire_channel;

typedef struct tb_wire_failure {
    int32_t code;
    int32_t rank; /* where it began */
} tb_wire_failure;

/* The first bytes of a connection, each way. */
typedef struct tb_hello {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_bytes;
    int32_t rank;
    int32_t peer; /* whom the sender means */
    int32_t world;
    uint32_t connections; /* of the pair, as the connecting side wants them */
    uint32_t connection; /* which of them this is */
    uint32_t reserved;
    uint64_t generation;
    uint64_t incarnation; /* of the session: random */
    uint8_t name_space[32];
    uint8_t nonce[32];
    uint64_t reserved2;
} tb_hello;

void tb_hello_start(tb_hello *hello);
/*
 * Checks a hello against ours: TB_EPROTOCOL (no tensorbus speaks), TB_EVERSION, or TB_EAUTH (another
 * namespace, generation or world). peer: the rank that it must come from, or -1.
 */
int32_t tb_hello_check(const tb_hello *theirs, const tb_hello *ours, int32_t peer, tb_error *err);

/*
 * The longest body that a control frame of this kind may have; UINT64_MAX where the kind is unknown or is
 * DATA.
 */
uint64_t tb_frame_limit(uint8_t kind);

#endif
