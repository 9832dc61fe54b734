/* Which carrier a pair of ranks gets, and which there are. */
#ifndef TB_SELECT_H
#define TB_SELECT_H

#include "round/carrier.h"

/*
 * A table says all that the engine asks of it: numbers that fit and differ, and what each carrier's way needs. Fails
 * and names the carrier and what it has not; a session opens with no other table.
 */
int32_t tb_carriers_check(const tb_carrier *const *carriers, tb_error *err);
/*
 * The carrier of a pair: a pure function of what both have said, the same whichever end asks. Fails if there is none;
 * the message names what is missing.
 */
int32_t tb_carrier_select(const tb_carrier *const *carriers, const tb_wire_identity *lower,
                          const tb_wire_identity *higher, uint32_t flags, const tb_carrier **carrier, tb_error *err);
/* The first of the session's table that moves in that way; NULL if there is none. */
const tb_carrier *tb_carrier_by_way(const tb_session *session, enum tb_way way);
/* True if the session may use a carrier of one of these ways that reaches one of these kinds of memory. */
bool tb_session_may(const tb_session *session, uint32_t ways, uint32_t memory);

/* In which way a channel's buckets come or go; 0: they stay in this rank. */
static inline uint32_t tb_way_of(const tb_transfer *transfer, uint32_t channel) {
    const tb_exchange *exchange = transfer->channels[channel].exchange;
    return exchange == NULL ? 0 : exchange->carrier->way;
}

#endif
