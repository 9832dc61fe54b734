/* What the ends of a transfer say to each other once they are paired. The session's lock is held in all of these. */
#ifndef TB_TRANSFER_PEER_H
#define TB_TRANSFER_PEER_H

#include "round/transfer.h"

tb_exchange *tb_peer_exchange(tb_peer *peer, uint64_t transfer);
int32_t tb_transfer_on_frame(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err);
void tb_transfer_say_failure(tb_exchange *exchange, uint8_t kind, uint64_t number, const tb_error *error);

#endif
