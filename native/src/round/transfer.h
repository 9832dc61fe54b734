#ifndef TB_TRANSFER_H
#define TB_TRANSFER_H

#include "round/engine.h"

/* A transfer of the session by its number; NULL and TB_ECLOSED where there is none. The session's lock is held. */
tb_transfer *tb_transfer_find(tb_session *session, uint64_t handle, tb_error *err);
/* Frees a transfer that nothing refers to any more. */
void tb_transfer_free(tb_transfer *transfer);
/* The tables and memory of a transfer whose program is loaded. */
int32_t tb_transfer_allocate(tb_transfer *transfer, tb_error *err);
/* Ends the prepare or round under way with that code. The session's lock is held. */
void tb_transfer_give_up(tb_transfer *transfer, int32_t code);

#endif
