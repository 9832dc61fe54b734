/* What a source tells its targets of its memory. The session's lock is held. */
#ifndef TB_EXPORT_H
#define TB_EXPORT_H

#include "round/transfer.h"

/* Says all that the peer of an exchange may read. */
int32_t tb_export_say(tb_exchange *exchange, tb_error *err);

#endif
