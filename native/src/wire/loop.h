/* Loops: what one thread serves (net.h). In the loop's thread, without the lock, unless a comment says otherwise. */
#ifndef TB_LOOP_H
#define TB_LOOP_H

#include "wire/net.h"

int32_t tb_loop_open(tb_loop *loop, tb_net *net, uint32_t index, tb_error *err);
/* Gives back what open took, also if it failed. */
void tb_loop_close(tb_loop *loop);
/* Ends a wait of its thread. The lock is held. */
void tb_loop_wake(tb_loop *loop);
/* Waits for events, for so long; -1 is no limit. They are noted in the connections. */
void tb_loop_wait(tb_loop *loop, int milliseconds);
/* Serves every connection that is to be served now, once. */
void tb_loop_serve(tb_loop *loop);
/* Serves the first of them; false if there is none. */
bool tb_loop_serve_next(tb_loop *loop);
/* Its connections let go of what belongs to rounds that failed. The lock is held. */
void tb_loop_sweep(tb_loop *loop);
/* Ends all of its connections. */
void tb_loop_end(tb_loop *loop);

#endif
