/* The frames of docs/wire-protocol.md: their bytes, and nothing of what they cause. */
#ifndef TB_WIRE_H
#define TB_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/crc32c.h"
#include "tensorbus.h"

#define TB_HELLO_BYTES 128
#define TB_HEADER_BYTES 40
#define TB_TRAILER_BYTES 8
#define TB_BODY_CHECK_BYTES 4 /* behind the body of a control frame: its CRC-32C */
#define TB_PROOF_BYTES 32
#define TB_KEY_BYTES 1024 /* the longest key of a transfer */
#define TB_REASON_BYTES 240 /* the longest message that travels with a failure */
#define TB_EXPORT_BYTES 49152 /* the longest part of an export that travels in a frame */

enum tb_frame_kind {
    TB_FRAME_PROOF = 1,   /* body: 32 bytes */
    TB_FRAME_VERDICT = 2, /* count: 0 or the code of the refusal */
    TB_FRAME_PING = 3,
    TB_FRAME_PONG = 4,
    TB_FRAME_BYE = 5,
    TB_FRAME_PREPARE = 6, /* body: tb_wire_prepare, channels, key */
    /* round: the sender's number of its transfer, which is no more; count: tb_release; body:
       as of ABORT */
    TB_FRAME_RELEASE = 7,
    TB_FRAME_GRANT = 8,  /* count: buckets of the channel that may be sent, from the first */
    TB_FRAME_DATA = 9,   /* sequence: bucket; body: payload; a trailer follows */
    TB_FRAME_TAKEN = 10, /* the receiver has consumed the channel */
    TB_FRAME_ABORT = 11, /* body: tb_wire_failure, message */
    /* round: the sender's number of the transfer that it has paired with the receiver's; count: the carrier */
    TB_FRAME_MATCH = 12,
    TB_FRAME_EXPORT = 13, /* round: as of MATCH; body: the next part of what the sender exports */
    TB_FRAME_READY = 14,  /* count buckets from sequence on may be read in the sender's memory */
    TB_FRAME_READ = 15,   /* the bucket `sequence` was read */
    TB_FRAME_QUIET =
        16, /* in this round, which failed, the sender reads nothing of the receiver's any more */
    TB_FRAME_CARRIER = 17, /* this and the next two belong to the carrier that moves a transfer's buckets jointly */
    TB_FRAME_CARRIER_LAST = 19,
    TB_FRAME_HERE = 20, /* the sender has begun the round */
};

/* A RELEASE in a prepare says whether the receiver's may go on, or be tried again once the store was asked anew. */
enum tb_release { TB_RELEASE_ONCE = 0, TB_RELEASE_FOR_GOOD = 1, TB_RELEASE_MOVED = 2 };

/*
 * Before every frame. Unused fields are 0. transfer is the receiver's number of it. check is the CRC-32C of what stands
 * before it: a header that changed on its way could name another round, or a length for whose end nobody waits.
 */
typedef struct tb_wire_header {
    uint8_t kind;
    uint8_t stage;
    uint16_t reserved;
    uint32_t count;
    uint64_t transfer;
    uint64_t round;
    uint64_t body_bytes;
    uint32_t sequence;
    uint32_t check;
} tb_wire_header;

static inline void tb_wire_seal(tb_wire_header *header) {
    header->check = tb_crc32c(0, header, offsetof(tb_wire_header, check));
}

static inline bool tb_wire_header_intact(const tb_wire_header *header) {
    return header->check == tb_crc32c(0, header, offsetof(tb_wire_header, check));
}

/* What stands behind the header of a control frame. */
static inline uint64_t tb_wire_control_bytes(const tb_wire_header *header) {
    return header->body_bytes > 0 ? header->body_bytes + TB_BODY_CHECK_BYTES : 0;
}

/* Says if the body of a control frame, of which all bytes are there, is what was sent. */
static inline bool tb_wire_body_intact(const tb_wire_header *header, const uint8_t *body) {
    uint32_t check;
    if (header->body_bytes == 0) {
        return true;
    }
    memcpy(&check, body + header->body_bytes, sizeof check);
    return check == tb_crc32c(0, body, header->body_bytes);
}

/* After the payload of a bucket. */
enum { TB_TRAILER_GOOD = 0x444f4f47, TB_TRAILER_VOID = 0x44494f56 };
typedef struct tb_wire_trailer {
    uint32_t verdict;
    uint32_t crc; /* checksum of the header and the payload; 0 if none was asked for */
} tb_wire_trailer;

/*
 * A header that changed would put a payload that did not into another's place: the checksum of a bucket begins with it.
 */
static inline uint32_t tb_wire_header_crc(const tb_wire_header *header) {
    return tb_crc32c(0, header, sizeof *header);
}

/* The sender as carriers know it that reach into its memory, and by which it can be reached. */
typedef struct tb_wire_identity {
    uint8_t boot[16];   /* boot id of the kernel */
    uint64_t pid_space; /* inode of the namespace that pid is of */
    uint64_t pid_start; /* when the process began, in ticks since the boot */
    int32_t pid;
    uint32_t user;
    uint32_t carriers;  /* bits of tb_carrier_bits */
    uint32_t memory;    /* bits of the kinds that its tensors lie in */
    uint8_t device[16]; /* UUID of the GPU that its tensors lie on, or 0 */
    uint32_t facts[2];  /* a word of each carrier that has one, as its library is; carriers/registry.h says whose */
    int32_t book;       /* the sender's descriptor of its book (book.h), or -1 */
    uint32_t reserved2;
    uint8_t nonce[16]; /* in a PREPARE: what the receiver has to place in its own book for the sender */
} tb_wire_identity;

typedef struct tb_wire_prepare {
    uint64_t transfer; /* the sender's number of it */
    uint8_t digest[32];
    uint32_t flags;
    uint32_t channels;
    uint32_t key_bytes;
    uint32_t has_pool; /* the sender owns reduced pieces */
    uint64_t joined;   /* a fingerprint of the ranks that move jointly; 0: the sender is none of them */
    tb_wire_identity identity;
} tb_wire_prepare;

/*
 * What a sender exports at prepare: this, its regions, then the source end of each chunk that it sends to the
 * receiver, in the order (stage, bucket, chunk), then the words of their descriptors, and the carrier's
 * blobs. Parts of it travel in order.
 */
typedef struct tb_wire_export {
    uint64_t bytes; /* how long all of it is */
    uint64_t words;
    uint32_t regions;
    uint32_t ends;
    uint32_t blob_bytes; /* behind the words: what the carrier says of the regions, which nobody else looks into; */
    uint32_t session_bytes; /* and behind that what it says of the session */
} tb_wire_export;

enum { TB_WIRE_POOL = 0xffffffff };
typedef struct tb_wire_region {
    uint32_t memory;    /* the bit of its kind */
    uint32_t number; /* the region's number in the sender's session; TB_WIRE_POOL: the pool of its transfer */
    uint32_t blob_at, blob_bytes; /* in the blobs */
    uint64_t bytes;
    uint64_t pieces; /* a pool: how many places of pieces stand at pieces_at, as u64 offsets in the region */
    uint64_t pieces_at;
} tb_wire_region;

typedef struct tb_wire_end {
    uint64_t
        at; /* the first element's offset in the region; in a pool: the number of the piece */
    uint32_t region;
    uint32_t descriptor; /* word; TB_NONE: the elements of a piece, in a row */
    uint32_t dtype;
    uint32_t reserved;
} tb_wire_end;

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
    int32_t rank; /* the one on which it began */
} tb_wire_failure;

/* The first bytes of a connection, each way. */
typedef struct tb_hello {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_bytes;
    int32_t rank;
    int32_t peer; /* whom the sender means */
    int32_t world;
    uint32_t connections; /* how many the connecting side wants for the pair */
    uint32_t connection; /* which of them this is */
    uint32_t reserved;
    uint64_t generation;
    uint64_t incarnation; /* a random number that names the session */
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
 * The longest body that a control frame of this kind may have; UINT64_MAX if the kind is unknown or is
 * DATA.
 */
uint64_t tb_frame_limit(uint8_t kind);

#endif
