#ifndef TB_BUS_THREAD_H
#define TB_BUS_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/*
 * A thread with a small stack, which no signal of the process is delivered to, and which can be ended while it waits in
 * the kernel: what it calls there returns EINTR, and it looks at stop.
 */
typedef struct tb_bus_thread {
    pthread_t thread;
    void (*run)(void *argument);
    void *argument;
    atomic_bool stop;
    atomic_bool done;
} tb_bus_thread;

/* Returns an errno. The structure stays where it is until tb_bus_thread_end. */
int tb_bus_thread_start(tb_bus_thread *thread, void (*run)(void *argument), void *argument);
/* Sets stop, interrupts the thread until it has ended, and joins it. */
void tb_bus_thread_end(tb_bus_thread *thread);
static inline bool tb_bus_thread_stopped(tb_bus_thread *thread) {
    return atomic_load_explicit(&thread->stop, memory_order_acquire);
}

#endif
