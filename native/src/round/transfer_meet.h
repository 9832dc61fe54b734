/* How the ends of a transfer find each other at prepare. The session's lock is held in all of these. */
#ifndef TB_TRANSFER_MEET_H
#define TB_TRANSFER_MEET_H

#include "round/transfer.h"

void tb_transfer_say_prepare(tb_exchange *exchange);
void tb_transfer_say_match(tb_exchange *exchange);
void tb_transfer_fail_prepare(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message);
/* Its prepare fails, and that of its peers with it: another attempt would not do. */
void tb_transfer_refuse(tb_transfer *transfer, int32_t code, int32_t rank, int os_errno, const char *message);
/* Ends a prepare that failed, once no thread is at it any more. */
void tb_transfer_end_late(tb_transfer *transfer);
void tb_transfer_check_prepared(tb_transfer *transfer);
void tb_transfer_meet_early(tb_exchange *exchange);
void tb_transfer_leave_peers(tb_transfer *transfer);
void tb_transfer_let_regions_go(tb_transfer *transfer);
/* The peer gave it up. */
void tb_transfer_drop_early(tb_peer *peer, uint64_t remote);
void tb_transfer_forget_attempt(tb_exchange *exchange);
int32_t tb_transfer_on_prepare(tb_peer *peer, const tb_wire_header *header, const uint8_t *body, tb_error *err);
int32_t tb_transfer_on_match(tb_exchange *exchange, const tb_wire_header *header, tb_error *err);
int32_t tb_transfer_on_export(tb_exchange *exchange, const tb_wire_header *header, const uint8_t *body, tb_error *err);

#endif
