/* CLOCK_MONOTONIC. No lock is needed. */
#include "base/clock.h"

uint64_t tb_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t tb_deadline(uint64_t timeout_ns) {
    uint64_t deadline;
    return __builtin_add_overflow(tb_now(), timeout_ns, &deadline) ? UINT64_MAX : deadline;
}

struct timespec tb_timespec(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

int tb_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t monotonic;
    int error = pthread_condattr_init(&monotonic);
    if (error != 0) {
        return error;
    }
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    error = pthread_cond_init(cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return error;
}
