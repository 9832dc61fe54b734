/*
 * The thread that waits on a process's wake semaphore. While posts come close together it spins a little before it
 * sleeps: a thread that is awake answers a post within a microsecond, one that sleeps has to be scheduled first. Posts
 * further apart than a few spins are not worth it, so that an idle process, or a slow one, never spins. What it says
 * goes through a port, which has its own lock.
 */
#include <errno.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/handle.h"
#include "host/bus_thread.h"
#include "host/port.h"
#include "base/error.h"

#define SPINS_APART 8  /* posts that are this many spins apart are too far apart to spin for */
#define SPIN_CHECKS 64 /* looks at the semaphore between looks at the clock */

typedef struct tb_waiter {
    tb_source source;
    sem_t *semaphore;
    uint64_t semaphore_handle;
    uint64_t spin_ns;
    tb_bus_thread thread;
} tb_waiter;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Looks for a post during spin_ns. */
static bool spin_for_post(tb_waiter *waiter) {
    if (waiter->spin_ns == 0) {
        return false;
    }
    uint64_t end = tb_now() + waiter->spin_ns;
    do {
        for (int i = 0; i < SPIN_CHECKS; i++) {
            if (sem_trywait(waiter->semaphore) == 0) {
                return true;
            }
            relax();
        }
    } while (tb_now() < end);
    return false;
}

static void run_waiter(void *argument) {
    tb_waiter *waiter = argument;
    uint64_t last = 0;
    bool busy = false;
    while (!tb_bus_thread_stopped(&waiter->thread)) {
        if (!(busy && spin_for_post(waiter)) && sem_wait(waiter->semaphore) != 0) {
            continue; /* interrupted */
        }
        while (sem_trywait(waiter->semaphore) == 0) {
        }
        tb_source_raise(&waiter->source);
        uint64_t now = tb_now();
        busy = now - last < SPINS_APART * waiter->spin_ns;
        last = now;
    }
}

static void destroy_waiter(void *object) {
    tb_waiter *waiter = object;
    tb_bus_thread_end(&waiter->thread);
    tb_handle_put(waiter->semaphore_handle);
    tb_source_detach(&waiter->source);
    free(waiter);
}

int32_t tb_waiter_start(uint64_t port, uint64_t semaphore, uint64_t token, uint64_t spin_ns, uint64_t *handle,
                        tb_error *err) {
    int32_t rc;
    tb_waiter *waiter = calloc(1, sizeof *waiter);
    if (waiter == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a waiter");
    }
    waiter->semaphore_handle = semaphore;
    waiter->spin_ns = spin_ns;
    /* The use lasts as long as the thread. */
    waiter->semaphore = tb_handle_get(TB_HANDLE_SEMAPHORE, semaphore, err);
    if (waiter->semaphore == NULL) {
        rc = TB_ECLOSED;
        goto free_waiter;
    }
    rc = tb_source_attach(&waiter->source, port, token, err);
    if (rc != TB_OK) {
        goto end_semaphore;
    }
    int failed = tb_bus_thread_start(&waiter->thread, run_waiter, waiter);
    if (failed != 0) {
        rc = tb_fail(err, TB_ESYSTEM, -1, failed, "the waiter's thread cannot be started");
        goto detach;
    }
    rc = tb_handle_add(TB_HANDLE_WAITER, waiter, destroy_waiter, handle, err);
    if (rc != TB_OK) {
        destroy_waiter(waiter);
    }
    return rc;

detach:
    tb_source_detach(&waiter->source);
end_semaphore:
    tb_handle_put(semaphore);
free_waiter:
    free(waiter);
    return rc;
}

int32_t tb_waiter_stop(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_WAITER, handle, err);
}
