/* This process as others know it, from PREPARE and the store (tb_wire_identity). No lock is needed. */
#ifndef TB_IDENTITY_H
#define TB_IDENTITY_H

#include "wire/wire.h"

/* Fills in which process this is, of which user, host and name space. Reads /proc: when a session is opened. */
int32_t tb_identity_fill(tb_wire_identity *identity, tb_error *err);
/* True while the process that was there when this was said is still there; it is one of this host. Reads /proc. */
bool tb_identity_lives(const tb_wire_identity *identity);
/*
 * False if it is known that the process of `other` is gone. Of another host, or another namespace of processes, nothing
 * is.
 */
bool tb_identity_may_live(const tb_wire_identity *own, const tb_wire_identity *other);

#endif
