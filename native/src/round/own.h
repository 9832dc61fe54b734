/*
 * The sessions of this process. A peer that is one of them is read where it lies, by its addresses, so who is one is
 * decided by this table and by the connection itself: both of its ends are here. It is never decided by what a peer
 * says. A peer that stands between two sessions of this process is at one end of two connections, and is none of them.
 */
#ifndef TB_OWN_H
#define TB_OWN_H

#include "round/carrier.h"

void tb_own_add(tb_session *session);
/* Nobody looks at it any more once this returns. */
void tb_own_remove(tb_session *session);

/*
 * Fills in where each region of the import lies, which is 0 if the session has no such region. False if the
 * source is no session of this process. Without the lock.
 */
bool tb_own_find(const tb_import *import, const tb_exchange *exchange, uint64_t *addresses);

#endif
