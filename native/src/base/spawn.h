#ifndef TB_SPAWN_H
#define TB_SPAWN_H

#include <pthread.h>
#include <stddef.h>

/*
 * Starts a thread with a stack of that size. Signals of the process go to the threads of the host program, never to
 * this one; open_signal, unless it is 0, is the only one that it takes. Returns an errno.
 */
int tb_spawn(pthread_t *thread, size_t stack_bytes, int open_signal, void *(*run)(void *), void *argument);

#endif
