/* A link within the process: a ring of bytes each way. */
#ifndef TB_MEMORY_LINK_H
#define TB_MEMORY_LINK_H

#include "wire/net.h"

typedef struct tb_pipe tb_pipe;

/* Gives the links of both ends; false if there is no memory. */
bool tb_pipe_create(tb_link ends[2]);
/* The connection that is told when its end can be read or written; by its own thread. */
void tb_pipe_attach(const tb_link *link, tb_conn *conn);

#endif
