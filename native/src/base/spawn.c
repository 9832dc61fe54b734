/* How native code starts a thread. No lock is needed. */
#include "base/spawn.h"

#include <signal.h>

int tb_spawn(pthread_t *thread, size_t stack_bytes, int open_signal, void *(*run)(void *), void *argument) {
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error != 0) {
        return error;
    }
    sigset_t blocked, before;
    sigfillset(&blocked);
    if (open_signal != 0) {
        sigdelset(&blocked, open_signal);
    }
    error = pthread_attr_setstacksize(&attributes, stack_bytes);
    if (error == 0) {
        error = pthread_sigmask(SIG_SETMASK, &blocked, &before); /* the new thread inherits it */
    }
    if (error == 0) {
        error = pthread_create(thread, &attributes, run, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attributes);
    return error;
}
