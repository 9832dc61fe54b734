#ifndef TB_GRAPH_H
#define TB_GRAPH_H

#include "round/engine.h"

/* A graph of the session by its number; NULL and TB_ECLOSED where there is none. The session's lock is held. */
tb_graph *tb_graph_find(tb_session *session, uint64_t handle, tb_error *err);
/* Frees a graph that nothing refers to any more. */
void tb_graph_free(tb_graph *graph);
/* The tables and memory of a graph whose program is loaded. */
int32_t tb_graph_allocate(tb_graph *graph, tb_error *err);
/* Ends the prepare or round under way with that code. The session's lock is held. */
void tb_graph_give_up(tb_graph *graph, int32_t code);

#endif
