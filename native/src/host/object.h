/*
 * Handles of the bus section. A handle is an index and a generation, so that a stale one is refused; an
 * object that was closed while another thread uses it is destroyed by the last user.
 */
#ifndef TB_BUS_OBJECT_H
#define TB_BUS_OBJECT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "tensorbus.h"

enum tb_bus_kind {
    TB_BUS_PORT = 1,
    TB_BUS_SEMAPHORE,
    TB_BUS_WAITER,
    TB_BUS_LOCK,
    TB_BUS_WATCH,
    TB_BUS_GATE,
    TB_BUS_HEARTBEAT,
    TB_BUS_PULSE,
    TB_BUS_EVENT,
    TB_BUS_HANDOVER,
};

/* Gives a handle to object; destroy is called once, after the close, when nobody uses it any more. */
int32_t tb_bus_add(enum tb_bus_kind kind, void *object, void (*destroy)(void *), uint64_t *handle,
                   tb_error *err);
/* The object behind a handle, until tb_bus_end; NULL, and *err filled (TB_ECLOSED), where there is none. */
void *tb_bus_use(uint64_t handle, enum tb_bus_kind kind, tb_error *err);
void tb_bus_end(uint64_t handle);
int32_t tb_bus_close(uint64_t handle, enum tb_bus_kind kind, tb_error *err);

/*
 * A thread with a small stack, which no signal of the process is delivered to, and which can be ended while
 * it waits in the kernel: what it calls there returns EINTR, and it looks at stop.
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

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t tb_bus_now(void);
struct timespec tb_bus_timespec(uint64_t ns);

/* TB_EFOREIGN unless fd is a plain file of this user that nobody else may open; what, name: the message. */
int32_t tb_bus_check_owner(int fd, const char *what, const char *name, tb_error *err);

/* Opens a lock file, made where it is missing, and checks its owner. */
int32_t tb_bus_open_lock_file(const char *path, int *fd, tb_error *err);

/* fcntl with an open-file-description lock of one byte. Returns 0 or an errno; EINTR only where it waits. */
int tb_bus_byte_lock(int fd, int command, short type, uint64_t offset);

#endif
