/* The memory of a session, as carriers know it that register memory. Without the lock. */
#ifndef TB_REGION_H
#define TB_REGION_H

#include "round/session.h"

/* Shows memory to each carrier of the session that registers it. If one of them fails, none of them has it. */
int32_t tb_region_show(tb_session *session, tb_region *region, tb_error *err);
/* Takes it from all of them. */
void tb_region_withdraw(tb_session *session, tb_region *region);

#endif
