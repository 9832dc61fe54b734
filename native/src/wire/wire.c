/* Sizes of frames, and checks of hellos. No lock is needed. */
#include "wire/wire.h"

#include <string.h>

#include "base/error.h"
#include "program/program.h"

_Static_assert(sizeof(tb_hello) == TB_HELLO_BYTES, "hello");
_Static_assert(sizeof(tb_wire_header) == TB_HEADER_BYTES, "header");
_Static_assert(sizeof(tb_wire_trailer) == TB_TRAILER_BYTES, "trailer");
_Static_assert(sizeof(tb_wire_identity) == 96 && sizeof(tb_wire_prepare) == 160, "prepare");
_Static_assert(sizeof(tb_wire_channel) == 32, "channel");
_Static_assert(sizeof(tb_wire_export) == 32 && sizeof(tb_wire_region) == 40, "export");
_Static_assert(sizeof(tb_wire_end) == 24, "end");

static const uint8_t magic[8] = {'T', 'E', 'N', 'S', 'O', 'R', 'B', 'S'};

void tb_hello_start(tb_hello *hello) {
    memset(hello, 0, sizeof *hello);
    memcpy(hello->magic, magic, sizeof magic);
    hello->version = TB_PROTOCOL_VERSION;
    hello->header_bytes = TB_HEADER_BYTES;
}

int32_t tb_hello_check(const tb_hello *theirs, const tb_hello *ours, int32_t peer, tb_error *err) {
    if (memcmp(theirs->magic, magic, sizeof magic) != 0) {
        return tb_fail(err, TB_EPROTOCOL, peer, 0, "what connected does not speak the protocol of tensorbus");
    }
    if (theirs->version != TB_PROTOCOL_VERSION || theirs->header_bytes != TB_HEADER_BYTES) {
        return tb_fail(err, TB_EVERSION, peer, 0, "the peer speaks protocol version %u, this rank version %u",
                       theirs->version, TB_PROTOCOL_VERSION);
    }
    if (memcmp(theirs->name_space, ours->name_space, sizeof ours->name_space) != 0) {
        return tb_fail(err, TB_EAUTH, peer, 0, "the peer belongs to another namespace");
    }
    if (theirs->generation != ours->generation || theirs->world != ours->world) {
        return tb_fail(err, TB_EAUTH, peer, 0,
                       "the peer has generation %llu and a world of %d, this rank generation %llu and a world of %d",
                       (unsigned long long)theirs->generation, theirs->world, (unsigned long long)ours->generation,
                       ours->world);
    }
    if (theirs->peer != ours->rank || theirs->rank < 0 || theirs->rank >= ours->world
        || theirs->rank == ours->rank || (peer >= 0 && theirs->rank != peer)) {
        return tb_fail(err, TB_EPROTOCOL, peer, 0, "rank %d looked for rank %d, but connected to rank %d",
                       theirs->rank, theirs->peer, ours->rank);
    }
    return TB_OK;
}

uint64_t tb_frame_limit(uint8_t kind) {
    switch (kind) {
    case TB_FRAME_PROOF:
        return TB_PROOF_BYTES;
    case TB_FRAME_PREPARE:
        return sizeof(tb_wire_prepare) + 2 * TB_STAGES * sizeof(tb_wire_channel) + TB_KEY_BYTES;
    case TB_FRAME_RELEASE:
    case TB_FRAME_ABORT:
        return sizeof(tb_wire_failure) + TB_REASON_BYTES;
    case TB_FRAME_EXPORT:
        return TB_EXPORT_BYTES;
    case TB_FRAME_VERDICT:
    case TB_FRAME_PING:
    case TB_FRAME_PONG:
    case TB_FRAME_BYE:
    case TB_FRAME_GRANT:
    case TB_FRAME_TAKEN:
    case TB_FRAME_MATCH:
    case TB_FRAME_READY:
    case TB_FRAME_READ:
    case TB_FRAME_QUIET:
    case TB_FRAME_CARRIER:
    case TB_FRAME_CARRIER + 1:
    case TB_FRAME_CARRIER_LAST:
    case TB_FRAME_HERE:
        return 0;
    default:
        return UINT64_MAX;
    }
}
