/* Threads of the bus, which wait in the kernel until they are interrupted. No lock is needed. */
#include "host/bus_thread.h"

#include <errno.h>
#include <signal.h>
#include <time.h>

#include "base/spawn.h"

#define STACK_BYTES (256 * 1024) /* room for the sanitizers' larger frames */

/* The signal that gets a thread of the bus out of the kernel, or 0 if the process has none to spare. */
static int interrupt_signal;
static pthread_once_t interrupt_once = PTHREAD_ONCE_INIT;

static void do_nothing(int signal_number) {
    (void)signal_number;
}

/* Takes a real-time signal that nobody else uses. Its handler does nothing: calls end, and do not restart. */
static void choose_signal(void) {
    for (int candidate = SIGRTMAX; candidate >= SIGRTMIN; candidate--) {
        struct sigaction current;
        if (sigaction(candidate, NULL, &current) != 0 || (current.sa_flags & SA_SIGINFO) != 0 ||
            current.sa_handler != SIG_DFL) {
            continue;
        }
        struct sigaction action = {.sa_handler = do_nothing};
        sigemptyset(&action.sa_mask);
        if (sigaction(candidate, &action, NULL) == 0) {
            interrupt_signal = candidate;
            return;
        }
    }
}

static void *run_thread(void *argument) {
    tb_bus_thread *thread = argument;
    thread->run(thread->argument);
    atomic_store_explicit(&thread->done, true, memory_order_release);
    return NULL;
}

int tb_bus_thread_start(tb_bus_thread *thread, void (*run)(void *argument), void *argument) {
    pthread_once(&interrupt_once, choose_signal);
    if (interrupt_signal == 0) {
        return EAGAIN;
    }
    thread->run = run;
    thread->argument = argument;
    atomic_init(&thread->stop, false);
    atomic_init(&thread->done, false);
    return tb_spawn(&thread->thread, STACK_BYTES, interrupt_signal, run_thread, thread);
}

void tb_bus_thread_end(tb_bus_thread *thread) {
    atomic_store_explicit(&thread->stop, true, memory_order_release);
    const struct timespec pause = {.tv_nsec = 200000};
    /* A signal that comes right before the thread enters the kernel is lost: hence again and again. */
    while (!atomic_load_explicit(&thread->done, memory_order_acquire)) {
        pthread_kill(thread->thread, interrupt_signal);
        nanosleep(&pause, NULL);
    }
    pthread_join(thread->thread, NULL);
}
