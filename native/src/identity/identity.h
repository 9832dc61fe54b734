/* Who this process is to others, as PREPARE and the store say it (tb_wire_identity). No lock is needed. */
#ifndef TB_IDENTITY_H
#define TB_IDENTITY_H

#include "wire/wire.h"

/* Fills in which process this is, of which user, host and name space. Reads /proc: when a session is opened. */
int32_t tb_identity_fill(tb_wire_identity *identity, tb_error *err);
/* True while the process that was there when this was said is still there. Reads /proc. */
bool tb_identity_lives(const tb_wire_identity *identity);

#endif
